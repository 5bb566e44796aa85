"""Recipes from Megatron-LM's flags: they read, train the same model for the same tokens, and name what they lack."""

from pathlib import Path

import pytest
from megatron_commands import DROPOUT, MODEL, PLAIN, recipe_of

from gpt.errors import ConfigError
from launch.engines.from_megatron import recipe_from_megatron
from launch.engines.megatron_unmatched import LACKING, UNNEEDED


def test_every_number_is_carried_over_in_our_units() -> None:
    text, config = recipe_of(
        f"{MODEL} --micro-batch-size 2 --global-batch-size 32 --rampup-batch-size 8 4 6000 --train-samples 100000 "
        "--lr 3e-4 --min-lr 3e-5 --lr-decay-style cosine --lr-warmup-fraction 0.01 "
        "--lr-decay-samples 90000 --adam-beta2 0.95 "
        "--weight-decay 0.1 --clip-grad 0.5 --bf16 --use-distributed-optimizer --tensor-model-parallel-size 2 "
        "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 2 --recompute-granularity full "
        "--train-data-path 0.25 a 0.75 b --valid-data-path c --eval-interval 50 --eval-iters 5 --save /runs/x "
        "--load /runs/x --save-interval 100 --seed 7 --vocab-size 32000 --tokenizer-model t --exit-duration-in-mins 30 "
        f"--distributed-timeout-minutes 20 --log-interval 5 --wandb-project p {DROPOUT}"
    )
    assert "FILL IN" not in text
    assert "No counterpart" not in text
    assert (config.run.directory, config.run.seed, config.run.collective_timeout_s) == (Path("/runs/x"), 7, 1200)
    assert (config.batch.micro_batch_size, config.batch.global_batch_tokens) == (2, 32 * 512)
    assert (config.batch.ramp_initial_tokens, config.batch.ramp_increment_tokens) == (8 * 512, 4 * 512)
    assert config.batch.ramp_tokens == 6000 * 512
    assert (config.train.total_tokens, config.schedule.decay_tokens) == (100_000 * 512, 90_000 * 512)
    assert (config.schedule.warmup_tokens, config.schedule.shape) == (900 * 512, "cosine")
    assert config.schedule.final_fraction == 0.1
    assert (config.optimizer.beta1, config.optimizer.beta2, config.optimizer.max_gradient_norm) == (0.9, 0.95, 0.5)
    parallel = config.parallel
    assert (parallel.tensor, parallel.pipeline, parallel.stages_per_rank, parallel.zero_stage) == (2, 2, 2, 1)
    assert (parallel.schedule, parallel.precision, parallel.recompute) == ("interleaved_1f1b", "bf16", "full")
    assert [(corpus.path, corpus.weight) for corpus in config.data.train] == [("a", 0.25), ("b", 0.75)]
    assert config.data.validation[0].path == "c"
    assert (config.train.evaluate_every_tokens, config.train.validation_tokens) == (50 * 16384, 5 * 16384)
    assert (config.checkpoint.every_tokens, config.train.stop_after_s) == (100 * 16384, 1800)
    assert (config.metrics.log_every_steps, config.metrics.wandb_project) == (5, "p")


def test_flags_that_are_left_out_have_megatrons_defaults_not_ours() -> None:
    _, config = recipe_of(PLAIN)
    assert (config.optimizer.beta2, config.optimizer.weight_decay) == (0.999, 0.01)
    assert (config.schedule.shape, config.schedule.final_fraction, config.schedule.warmup_tokens) == ("linear", 0.0, 0)
    assert config.schedule.decay_tokens == config.train.total_tokens == 1000 * 32 * 512
    assert (config.parallel.precision, config.parallel.zero_stage) == ("fp32", 0)
    text, _ = recipe_of(PLAIN.replace(DROPOUT, ""))
    assert "--hidden-dropout 0.1: no dropout, which is Megatron's default" in text


@pytest.mark.parametrize(("flags", "expected"), [("", False), ("--sequence-parallel", True)])
def test_tensor_ranks_share_the_sequence_if_megatrons_did(flags: str, expected: bool) -> None:
    text, config = recipe_of(f"{PLAIN} --tensor-model-parallel-size 2 {flags}")
    assert config.parallel.sequence_parallel is expected
    assert "--sequence-parallel" not in text.split("[run]")[0], "it is carried over, not left out"
    assert f"sequence_parallel = {str(expected).lower()}  # {flags or 'no --sequence-parallel'}" in text


def test_flags_without_a_counterpart_are_named_with_the_reason() -> None:
    text, _ = recipe_of(
        f"{PLAIN} --num-experts 8 --split 99,1,0 --fp16 --use-flash-attn --num-expert 8 --lr-warmup-init 1"
    )
    lacking, _, rest = text.partition("# Unknown, and left out:")
    unknown, _, unneeded = rest.partition("# Not needed")
    for flag in ("--num-experts 8: dense models", "--split 99,1,0: all of", "--fp16: bf16", "--lr-warmup-init 1: "):
        assert f"#   {flag}" in lacking
    assert "#   --num-expert 8 did you mean '--num-experts'?" in unknown
    assert "#   --use-flash-attn" in unneeded
    assert not LACKING.keys() & UNNEEDED


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--bf16 --fp16", "--bf16 and --fp16 contradict each other"),
        ("--train-samples 5", "--train-iters and --train-samples contradict each other"),
        ("--lr-warmup-samples 5", "--lr-warmup-samples contradicts --train-iters: count all in iterations"),
        ("--rampup-batch-size 1 1 10", "--rampup-batch-size contradicts --train-iters"),
        ("--lr-warmup-fraction 0.1 --lr-warmup-iters 5", "--lr-warmup-fraction and --lr-warmup-iters contradict"),
        ("--recompute-activations --recompute-granularity full", "contradict each other"),
        ("--mock-data", "--data-path and --mock-data contradict"),
        ("--num-query-groups 2", "--num-query-groups without --group-query-attention"),
        (
            "--position-embedding-type none --use-rotary-position-embeddings",
            "--use-rotary-position-embeddings and --position-embedding-type none contradict",
        ),
        ("--num-layers-per-virtual-pipeline-stage 3", "must divide --num-layers 8"),
        ("--sequence-parallel --bf16 yes", "--bf16 yes is invalid: it takes no value"),
        ("--seed one", "--seed one is invalid: must be a number"),
        ("--seed", "--seed is invalid with 0 values"),
        ("--lr 1", "--lr is given twice"),
        ("--lr-warmup-iters 2000", "schedule.decay_tokens"),
    ],
)
def test_contradictions_end_in_one_line(flags: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        recipe_of(f"{PLAIN} {flags}")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("flag", ["--num-layers", "--seq-length", "--micro-batch-size", "--lr", "--train-iters"])
def test_a_missing_size_is_named(flag: str) -> None:
    words = PLAIN.split()
    at = words.index(flag)
    with pytest.raises(ConfigError, match=f"^{flag}.* missing"):
        recipe_from_megatron([*words[:at], *words[at + 2 :]], [])
