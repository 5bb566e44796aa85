"""Recipes that Megatron-core cannot train are refused with one line that names the nearest that it can."""

import dataclasses

import pytest

from gpt.data.config import CorpusConfig, DataConfig
from gpt.errors import ConfigError
from gpt.model.config import ModelConfig, RopeScaling
from gpt.training.optimizer import OptimizerConfig, ParameterGroup
from parallel.engines.capabilities import check_engine
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout

MODEL = ModelConfig(vocab_size=120, n_ctx=16, n_layers=2, d_model=32, n_heads=4)
PARALLEL = ParallelConfig(engine="megatron")
OPTIMIZER = OptimizerConfig(1e-3)
LLAMA = {"positions": "rope", "norm": "rmsnorm", "activation": "swiglu", "bias": False, "tied": False}


def groups(*patterns):
    return OptimizerConfig(1e-3, groups=(ParameterGroup(patterns, lr_scale=0.5),))


REFUSED = {
    "no bias": ({"model": {"bias": False}}, "its LayerNorm always has a bias. Use model.bias = true"),
    "rope": (
        {"model": LLAMA | {"rope_scaling": RopeScaling(8.0, original_n_ctx=4096)}},
        "original context of 4096.* Use original_n_ctx = 8192",
    ),
    "heads": (
        {"model": {"n_kv_heads": 2}, "parallel": {"tensor": 4}},
        r"parallel.tensor = 4 .* must divide the key-value heads .*, 2. Use parallel.tensor = 2",
    ),
    "vocabulary": (
        {"model": {"vocab_size": 98, "vocab_multiple": 3}, "parallel": {"tensor": 2}},
        "must divide the rows of the vocabulary .*, 99. Use parallel.tensor = 1 or 3",
    ),
    "groups": (
        {"optimizer": groups("blocks.*.attention.q.*")},
        "different settings for blocks.0.attention.q.weight and blocks.0.attention.k.weight",
    ),
    "sgd": ({"optimizer": OptimizerConfig(1e-3, kind="sgd")}, 'optimizer.kind = "sgd".* Use optimizer.kind = "adamw"'),
    "frozen": ({"optimizer": OptimizerConfig(1e-3, frozen=("embed.*",))}, "optimizer.frozen"),
    "zero 2": ({"parallel": {"zero_stage": 2}}, "Use parallel.zero_stage = 1"),
    "schedule": ({"parallel": {"pipeline": 2, "schedule": "gpipe"}}, 'Use parallel.schedule = "1f1b"'),
    "async": ({"parallel": {"async_tensor": True}}, "parallel.async_tensor = true"),
    "documents": ({"data": {"sampling": "document"}}, 'data.sampling = "document".* Use data.sampling = "window"'),
    "mask": ({"data": {"document_mask": True}}, "Use data.document_mask = false"),
}


def sections(changes):
    data = DataConfig(tokenizer="t", train=(CorpusConfig(path="c"),), seq_len=16)
    return {
        "model": dataclasses.replace(MODEL, **changes.get("model", {})),
        "parallel": dataclasses.replace(PARALLEL, **changes.get("parallel", {})),
        "optimizer": changes.get("optimizer", OPTIMIZER),
        "data": dataclasses.replace(data, **changes.get("data", {})),
    }


@pytest.mark.parametrize("name", REFUSED)
def test_a_recipe_is_refused_with_the_nearest_that_works(name):
    changes, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message) as refusal:
        check_engine(**sections(changes))
    assert "\n" not in str(refusal.value)
    native = dataclasses.replace(sections(changes)["parallel"], engine="native")
    check_engine(**{**sections(changes), "parallel": native})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": LLAMA | {"n_kv_heads": 2, "rope_scaling": RopeScaling(8.0)}, "parallel": {"tensor": 2}},
        {"optimizer": groups("blocks.*.mlp.*", "norm.*"), "parallel": {"pipeline": 2, "zero_stage": 0}},
    ],
)
def test_a_recipe_that_works_is_not_refused(changes):
    check_engine(**sections(changes))


def test_interleaved_micro_batches_fill_rounds():
    parallel = ParallelConfig(engine="megatron", pipeline=2, schedule="interleaved_1f1b")
    with pytest.raises(ConfigError, match=r"a multiple of parallel.pipeline .* nearest: 2 or 4"):
        resolve_layout(parallel, BatchConfig(1, 48), model=MODEL, seq_len=16, world_size=2)
    assert resolve_layout(parallel, BatchConfig(1, 64), model=MODEL, seq_len=16, world_size=2).micro_batches == 4
