"""The [adapter] section: scale, targets, shapes, and what is refused."""

import dataclasses
import math

import pytest

from gpt.adapters.config import (
    AdapterConfig,
    adapter_names,
    adapter_of,
    adapter_shapes,
    check_adapter,
    check_also_train,
    is_adapter,
    projections,
)
from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from gpt.model.parameter_shapes import parameter_shapes

MODEL = ModelConfig(vocab_size=64, n_ctx=16, n_layers=2, d_model=16, n_heads=4, n_kv_heads=2)
LLAMA = dataclasses.replace(MODEL, activation="swiglu", norm="rmsnorm", positions="rope", d_ff=24)


@pytest.mark.parametrize("model", [MODEL, LLAMA])
def test_projections_are_the_matrices_of_the_blocks(model):
    matrices = {
        name.removesuffix(".weight"): shape
        for name, shape in parameter_shapes(model).items()
        if name.startswith("blocks.") and len(shape) == 2
    }
    assert projections(model) == matrices


def test_shapes_and_names():
    adapter = AdapterConfig(rank=3, targets=("blocks.1.attention.k", "blocks.*.mlp.down"))
    assert adapter_shapes(MODEL, adapter) == {
        "blocks.0.mlp.down.adapter.a": (3, 64),
        "blocks.0.mlp.down.adapter.b": (16, 3),
        "blocks.1.attention.k.adapter.a": (3, 16),
        "blocks.1.attention.k.adapter.b": (8, 3),
        "blocks.1.mlp.down.adapter.a": (3, 64),
        "blocks.1.mlp.down.adapter.b": (16, 3),
    }
    assert adapter_shapes(MODEL, None) == {}
    assert adapter_names("model.blocks.0.mlp.up.weight")[1] == "model.blocks.0.mlp.up.adapter.b"
    assert len(adapter_shapes(LLAMA, AdapterConfig(rank=3))) == 2 * 7 * 2
    assert is_adapter("optimizer.exp_avg.blocks.0.mlp.up.adapter.a")
    assert not is_adapter("blocks.0.mlp.up.weight")


def test_scale_and_what_trains():
    assert AdapterConfig(rank=8, alpha=4.0).scale == 0.5
    assert AdapterConfig(rank=8, alpha=4.0, rank_stabilized=True).scale == pytest.approx(4 / math.sqrt(8))
    adapter = AdapterConfig(also_train=("norm.*",))
    names = ["blocks.0.mlp.up.adapter.a", "norm.weight", "blocks.0.mlp_norm.weight", "embed.tokens.weight"]
    assert [adapter.trains(name) for name in names] == [True, True, False, False]
    check_also_train(names, adapter)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, r"adapter\.rank = 0 is invalid: must be at least 1"),
        ({"alpha": float("nan")}, r"adapter\.alpha = nan is invalid"),
        ({"targets": ()}, r"adapter\.targets = \[\] is invalid"),
        (
            {"targets": ("blocks.*.mlp.*", "embed.*")},
            r"adapter\.targets\[1\] = 'embed\.\*' is invalid: it matches no pro",
        ),
        ({"rank": 9}, r"adapter\.rank = 9 is invalid: blocks\.0\.attention\.k is 8 x 16, so its rank is at most 8"),
    ],
)
def test_mistakes(values, message):
    with pytest.raises(ConfigError, match=message):
        check_adapter(MODEL, AdapterConfig(**{"rank": 2, **values}))


def test_the_rank_is_compared_with_targets_only():
    check_adapter(MODEL, AdapterConfig(rank=16, targets=("blocks.*.mlp.*",)))


def test_the_adapter_of_a_checkpoint():
    adapter = AdapterConfig(rank=3, alpha=5.0, targets=("blocks.*.mlp.*",))
    table = {**dataclasses.asdict(adapter), "targets": ["blocks.*.mlp.*"], "also_train": [], "alpha": 5}
    assert adapter_of({"config": {"adapter": table}}) == adapter
    assert adapter_of({"config": {}}) is None
    assert adapter_of({}) is None
    for bad in ({"rank": "3"}, {"ranks": 3}, {"targets": "blocks.*"}, {"rank_stabilized": 1}, {"rank": True}):
        with pytest.raises(ConfigError, match="the configuration in the checkpoint has an invalid"):
            adapter_of({"config": {"adapter": bad}})
