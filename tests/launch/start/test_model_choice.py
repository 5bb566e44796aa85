"""Choose a model and its training from one dial, and measure this machine."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from gpt.errors import ConfigError
from gpt.model.gpt3_sizes import peak_learning_rate
from gpt.tokenizer.tokenizers import train_sentencepiece
from launch.config.run_config import layout_of, read_run_config
from launch.processes.terminal import WorkProgress
from launch.start.model_choice import MAX_EPOCHS, Dials, Machine, choose_training
from launch.start.speed import machine_here, measured_speed, visible_gpus
from launch.start.summary import describe_choice
from launch.start.train_recipe import train_recipe

CPU = Machine("cpu", 1)
FLOPS_PER_S = 2e10


def speed(plan) -> float:
    """A machine whose speed is known: 20 GFLOP/s."""
    return FLOPS_PER_S / plan.model.train_flops_per_token(plan.seq_len)


def choose(corpus: int, machine: Machine = CPU, measure=speed, **dials):
    return choose_training(
        Dials(**dials), corpus_tokens=corpus, vocab_size=4096, validation_share=0.05, machine=machine, measure=measure
    )


def never(plan) -> float:
    raise AssertionError("measured in vain")


def test_parameters_get_20_tokens_each():
    found = choose(10**9, measure=never, parameters=10e6)
    assert found.model.parameters == pytest.approx(10e6, rel=0.15)
    assert found.total_tokens == pytest.approx(20 * found.model.parameters, rel=0.01)
    assert found.learning_rate == peak_learning_rate(found.model.parameters)
    assert found.why == ()


def test_little_text_bounds_the_length_and_says_so():
    found = choose(10**6, measure=never, parameters=10e6)
    assert found.epochs == pytest.approx(MAX_EPOCHS, rel=0.01)
    assert any("would read the text" in line for line in found.why)
    assert any("the text is read 16.0 times" in line for line in found.why)
    long = choose(10**6, measure=never, parameters=10e6, tokens=30_000_000)
    assert long.epochs == pytest.approx(30, rel=0.01), "a given length is not bounded, but said"
    assert any("the text is read 30.0 times" in line for line in long.why)


def test_tokens_alone_choose_the_size():
    found = choose(10**9, measure=never, tokens=100_000_000)
    assert found.model.parameters == pytest.approx(5e6, rel=0.15)
    assert found.total_tokens == pytest.approx(100_000_000, rel=0.01)


def test_depth_is_the_number_of_layers():
    found = choose(10**9, measure=never, depth=4)
    assert (found.model.n_layers, found.model.d_model, found.model.n_heads) == (4, 256, 4)


@pytest.mark.parametrize("time_s", [600, 7200, 86400])
def test_a_time_is_used_up_by_20_tokens_a_parameter(time_s):
    found = choose(10**10, time_s=time_s)
    assert found.total_tokens / found.tokens_per_s == pytest.approx(time_s, rel=0.05)
    assert 10 < found.total_tokens / found.model.parameters < 40


def test_a_size_and_a_time_give_the_tokens():
    found = choose(10**10, parameters=5e6, time_s=600)
    assert found.total_tokens == pytest.approx(600 * found.tokens_per_s, rel=0.05)


def test_without_a_dial_a_small_text_is_not_measured_and_a_large_one_takes_an_hour():
    small = choose(400_000, measure=never)
    assert 0.8e6 < small.model.parameters < 1.2e6
    large = choose(10**10)
    assert large.total_tokens / large.tokens_per_s == pytest.approx(3600, rel=0.05)


@pytest.mark.parametrize("machine", [CPU, Machine("cpu", 3), Machine("cuda", 8)])
@pytest.mark.parametrize("corpus", [9_000, 400_000, 10**9])
@pytest.mark.parametrize("dials", [{}, {"parameters": 1e5}, {"parameters": 125e6}, {"tokens": 50_000}, {"depth": 3}])
def test_every_choice_is_a_recipe_that_fits_the_processes(tmp_path, machine, corpus, dials):
    found = choose(corpus, machine, **dials)
    text = train_recipe(found, name="mine", corpus=Path("c"), run=Path("r"), title="A title\n\n    command")
    (tmp_path / "train.toml").write_text(text)
    config = read_run_config(str(tmp_path / "train.toml"), [])
    layout_of(config, machine.n_processes)
    assert config.batch.global_batch_tokens % (config.batch.micro_batch_size * config.data.seq_len) == 0
    assert config.train.total_tokens == found.total_tokens == config.schedule.decay_tokens
    if corpus == 9_000:
        assert config.data.seq_len < 9_000 * 0.05, "the validation split holds a sample"


def test_contradicting_dials_are_one_line():
    with pytest.raises(ConfigError, match="--params and --depth both choose the model's size"):
        Dials(parameters=1e6, depth=2)
    with pytest.raises(ConfigError, match="--tokens and --time both choose the length"):
        Dials(tokens=10, time_s=60)


def test_this_machine_is_measured_by_a_real_run(tmp_path):
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=5)) for _ in range(4000)]
    train_sentencepiece(iter(words), tmp_path / "tokenizer.model", vocab_size=320)
    model = (tmp_path / "tokenizer.model").read_bytes()
    plan = choose_training(
        Dials(parameters=6e4, tokens=10_000),
        corpus_tokens=100_000,
        vocab_size=320,
        validation_share=0.1,
        machine=CPU,
        measure=never,
    )
    found = measured_speed(plan, model, n_processes=1, progress=WorkProgress(None))
    assert found > 1
    line = list(describe_choice(replace(plan, tokens_per_s=found)))[1]
    assert " here; learning rate" in line
    wrong = replace(plan, model=replace(plan.model, vocab_size=300))  # fewer rows than the tokenizer has tokens
    with pytest.raises(ConfigError, match="this machine cannot train the chosen model: "):
        measured_speed(wrong, model, n_processes=1, progress=WorkProgress(None))
    assert machine_here(2).n_processes == 2


@pytest.mark.parametrize(
    ("visible", "n"), [(None, 8), ("0", 1), ("3,5", 2), ("", 0), ("-1", 0), ("0,-1,2", 1), ("MIG-a,MIG-b", 2)]
)
def test_gpus_that_the_job_does_not_have_get_no_process(visible, n):
    """/dev lists all GPUs of a node, also those of other jobs."""
    assert visible_gpus(8, visible) == n
