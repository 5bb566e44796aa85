"""Recipes from DeepSpeed configurations: numbers in our units, gaps for the rest, contradictions and unknown keys."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from gpt.errors import ConfigError
from launch.config.recipe import build
from launch.config.run_config import RunConfig
from launch.engines.from_deepspeed import MODEL, recipe_from_deepspeed

GIVEN = [word for key, value in MODEL.items() for word in (f"--model.{key}", str(value))]
GIVEN += ["--data.tokenizer", "t", "--data.train", '[{ path = "c" }]', "--data.seq_len", "512"]
WHOLE = {
    "train_batch_size": 64,
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 2,
    "optimizer": {"type": "AdamW", "params": {"lr": 2e-4, "betas": [0.9, 0.95], "eps": 1e-7, "weight_decay": 0.05}},
    "scheduler": {
        "type": "WarmupCosineLR",
        "params": {"warmup_num_steps": 100, "total_num_steps": 1000, "warmup_type": "linear", "cos_min_ratio": 0.2},
    },
    "gradient_clipping": 0.5,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "zero_hpz_partition_size": 4},
    "steps_per_print": 7,
    "wandb": {"enabled": True, "project": "p", "team": "us"},
    "wall_clock_breakdown": True,
}


def text_of(folder: Path, config: Any, *overrides: str) -> str:
    (folder / "ds.json").write_text(json.dumps(config))
    return recipe_from_deepspeed(folder / "ds.json", overrides)


def config_of(text: str) -> RunConfig:
    return build(RunConfig, tomllib.loads(text), where="")


def test_every_number_is_carried_over_in_our_units(tmp_path: Path) -> None:
    text = text_of(tmp_path, WHOLE, *GIVEN)
    assert "FILL IN" not in text
    assert "No counterpart" not in text
    config = config_of(text)
    assert (config.batch.micro_batch_size, config.batch.global_batch_tokens) == (4, 64 * 512)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.beta2, optimizer.eps, optimizer.weight_decay) == (2e-4, 0.95, 1e-7, 0.05)
    assert optimizer.max_gradient_norm == 0.5
    schedule = config.schedule
    assert (schedule.shape, schedule.warmup_tokens, schedule.decay_tokens) == ("cosine", 100 * 32768, 1000 * 32768)
    assert (schedule.final_fraction, config.train.total_tokens) == (0.2, 1000 * 32768)
    parallel = config.parallel
    assert (parallel.precision, parallel.zero_stage, parallel.offload, parallel.data_shard) == ("bf16", 3, True, 4)
    assert (config.metrics.log_every_steps, config.metrics.wandb) == (7, "online")
    assert (config.metrics.wandb_project, config.metrics.wandb_entity) == ("p", "us")


def test_what_deepspeed_does_not_know_is_left_to_fill_in(tmp_path: Path) -> None:
    text = text_of(tmp_path, {"train_batch_size": "auto", "optimizer": {"type": "Adam", "params": {"lr": "auto"}}})
    gaps = text.split("# To fill in: ")[1].split(".\n")[0].split(", ")
    assert {f"model.{key}" for key in MODEL} <= set(gaps)
    assert {"data.train", "data.seq_len", "batch.micro_batch_size", "optimizer.learning_rate"} <= set(gaps)
    assert "1 x the number of data ranks" in text
    with pytest.raises(ConfigError, match=r"model\.vocab_size = 0"):
        config_of(text)
    more = ["--batch.micro_batch_size", "1", "--batch.global_batch_tokens", "1024", "--optimizer.learning_rate", "1e-3"]
    config = config_of(text_of(tmp_path, {}, *GIVEN, *more, "--train.total_tokens", "4096"))
    assert (config.schedule.shape, config.schedule.warmup_tokens, config.parallel.zero_stage) == ("constant", 0, 0)
    assert config.optimizer.max_gradient_norm == 1.0, "DeepSpeed's default since 0.19"


def test_the_precision_is_left_to_fill_in_if_the_program_decides_it(tmp_path: Path) -> None:
    """As in the configurations of Hugging Face's Trainer, with a table that is null."""
    auto = {"enabled": "auto"}
    config = {"bf16": auto, "fp16": auto, "zero_optimization": {"stage": 2, "offload_optimizer": None}}
    text = text_of(tmp_path, config)
    assert 'precision = "bf16"  # FILL IN: your program decides' in text
    assert "offload" not in text
    assert 'precision = "fp32"\n' in text_of(tmp_path, {"bf16": {"enabled": False}})


def test_steps_become_tokens_when_the_length_of_a_sequence_is_known(tmp_path: Path) -> None:
    text = text_of(tmp_path, WHOLE)
    assert "global_batch_tokens = 0  # FILL IN: 64 sequences x data.seq_len" in text
    assert "decay_tokens = 0  # FILL IN: 1000 steps x batch.global_batch_tokens" in text
    assert "global_batch_tokens = 32_768" in text_of(tmp_path, WHOLE, "--data.seq_len", "512")


def test_keys_without_a_counterpart_are_named(tmp_path: Path) -> None:
    extra = {
        "fp16": {"enabled": True},
        "bf16": {"enabled": False},
        "sparse_attention": {"mode": "fixed"},
        "elasticity": {"enabled": False},
        "activation_checkpointing": {"partition_activations": True},
        "gradient_clippin": 1.0,
        "optimizer": {"type": "Lamb", "params": {"lr": 1e-3}},
        "scheduler": {"type": "OneCycle", "params": {"warmup_type": "linear"}},
        "zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}, "zero_quantized_weights": True},
    }
    text = text_of(tmp_path, {**WHOLE, **extra})
    for line in (
        "sparse_attention: attention is dense",
        "fp16: bf16 needs no loss scale",
        "activation_checkpointing: recomputation",
        "optimizer.type = Lamb: ",
        "scheduler.type = OneCycle: ",
        "zero_optimization.offload_param.device = nvme: ",
        "zero_optimization.zero_quantized_weights: ",
        "gradient_clippin did you mean 'gradient_clipping'?",
        "wall_clock_breakdown",
    ):
        assert f"#   {line}" in text
    assert "elasticity" not in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train_batch_size": 30}, "train_batch_size = 30 is invalid: train_micro_batch_size_per_gpu = 4 x gradient"),
        ({"fp16": {"enabled": True}}, "bf16.enabled and fp16.enabled contradict each other"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "it needs stage 3"),
        ({"gradient_clipping": "much"}, "gradient_clipping = much is invalid: must be a number"),
        ({"optimizer": []}, "optimizer = [] is invalid: must be an object"),
        ({"zero_optimization": {"stage": 7}}, "parallel.zero_stage"),
    ],
)
def test_contradictions_end_in_one_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        text_of(tmp_path, {**WHOLE, **change}, *GIVEN)
    assert said in str(error.value)
