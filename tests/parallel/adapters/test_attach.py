"""Adapters on real gloo processes: every layout equals one process, and only the adapters change.

tests/parallel/adapters/test_peft.py compares one process with PEFT.
"""

import dataclasses
import math
import shutil
import sysconfig
from pathlib import Path

import pytest
import torch
from layout_runs import (
    LAUNCH_TIMEOUT_S,
    MODEL,
    MODERN,
    assert_same_continuations,
    fill_adapters,
    largest_difference,
    launch,
    run_of,
    settings_of,
    train,
)

from gpt.adapters.config import AdapterConfig, adapter_shapes
from gpt.model.config import ModelConfig
from gpt.model.heads import ScalarHead
from gpt.training.config import Retention
from gpt.training.objective import NextToken
from gpt.training.optimizer import OptimizerConfig
from parallel.adapters.attach import attach_adapters, choose_trained
from parallel.adapters.merge import read_merged
from parallel.axes.gradients import local
from parallel.checkpoint.handle import verify_checkpoint
from parallel.engines.choose import build_engine
from parallel.parallelize import model_on_meta

COMPILER = shutil.which("g++") and Path(sysconfig.get_paths()["include"], "Python.h").exists()
pytestmark = pytest.mark.timeout(LAUNCH_TIMEOUT_S + 30)
ADAPTER = {"rank": 4, "alpha": 6.0}
UNEVEN = {**MODERN, "d_model": 48, "n_heads": 6, "n_kv_heads": 3, "d_ff": 96}  # 3 key-value heads on 2 tensor ranks
LAYOUTS = {
    "tensor 2, selective": (2, {"tensor": 2, "recompute": "selective"}),
    "tensor 2, whole sequences": (2, {"tensor": 2, "sequence_parallel": False}),
    "pipeline 2, full": (2, {"pipeline": 2, "recompute": "full"}),
    "pipeline 2, zero bubble, zero 2": (2, {"pipeline": 2, "schedule": "zbv_zero_bubble", "zero_stage": 2}),
    "tensor 2 x pipeline 2": (4, {"tensor": 2, "pipeline": 2}),
    "data 2, zero 3": (2, {"data": 2, "zero_stage": 3}),
    "tensor 2 x data 2, zero 3": (4, {"tensor": 2, "data": 2, "zero_stage": 3}),
}

BF16 = {"tensor": 2, "data": 2, "zero_stage": 3}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    runs = [run_of("one", 1, {}, model=MODERN, adapter=ADAPTER, gradients=True, generate=True, steps=3)]
    for name, (world_size, parallel) in LAYOUTS.items():
        runs.append(
            run_of(
                name,
                world_size,
                parallel,
                model=MODERN,
                adapter=ADAPTER,
                gradients=True,
                generate=name == "tensor 2, selective",
                steps=3,
            )
        )
    for name, world_size, parallel in (("uneven, one", 1, {}), ("uneven, tensor 2", 2, {"tensor": 2})):
        runs.append(run_of(name, world_size, parallel, model=UNEVEN, adapter=ADAPTER, gradients=True, steps=2))
    if COMPILER:
        compiled = {"tensor": 2, "recompute": "selective", "compile": True}
        short = {**MODERN, "n_layers": 2}
        runs.append(run_of("compiled, one", 1, {}, model=short, adapter=ADAPTER, gradients=True, steps=2))
        runs.append(run_of("compiled", 2, compiled, model=short, adapter=ADAPTER, gradients=True, steps=2))
    for name, world_size, parallel in (("bf16, one", 1, {}), ("bf16, layout", 4, BF16)):
        keys = {**parallel, "precision": "bf16"}
        runs.append(run_of(name, world_size, keys, model=MODERN, adapter=ADAPTER, steps=2))
    last = {**ADAPTER, "targets": ["blocks.3.attention.q"], "also_train": ["norm.*"]}
    for name, world_size, parallel in (("last, one", 1, {}), ("last, pipeline 2", 2, {"pipeline": 2})):
        runs.append(run_of(name, world_size, parallel, model=MODERN, adapter=last, gradients=True, steps=2))
    return launch(tmp_path_factory.mktemp("adapters"), runs, timeout_s=LAUNCH_TIMEOUT_S)


@pytest.mark.parametrize(
    "name", [*LAYOUTS, "uneven, tensor 2", "last, pipeline 2", *(["compiled"] if COMPILER else [])]
)
def test_layout_equals_one_process(results, name):
    ours = results[name]
    reference = results[{"u": "uneven, one", "l": "last, one", "c": "compiled, one"}.get(name[0], "one")]
    assert ours["initial_weights"] == reference["initial_weights"]
    assert ours["gradients"].keys() == reference["gradients"].keys()
    for parameter, values in ours["gradients"].items():
        expected = torch.tensor(reference["gradients"][parameter])
        scale = float(expected[-1])  # the norm
        assert scale > 0, parameter
        torch.testing.assert_close(torch.tensor(values), expected, rtol=1e-5, atol=1e-5 * scale, msg=parameter)
    assert largest_difference(ours["losses"], reference["losses"]) < 1e-5
    assert largest_difference(ours["norms"], reference["norms"]) < 1e-4
    assert math.isclose(ours["evaluated"], reference["evaluated"], rel_tol=1e-5)
    assert torch.allclose(torch.tensor(ours["logits"]), torch.tensor(reference["logits"]), rtol=1e-4, atol=1e-5)
    if "greedy" in ours and "greedy" in reference:
        for way in ("greedy", "warm"):
            assert_same_continuations(ours[way], reference[way])


def test_a_base_in_bf16_starts_equal_on_every_layout(results):
    ours, reference = results["bf16, layout"], results["bf16, one"]
    assert ours["initial_weights"] == reference["initial_weights"]
    assert largest_difference(ours["losses"], reference["losses"]) < 1e-3  # a bf16 number has 8 bits


def test_only_adapters_have_gradients(results):
    expected = adapter_shapes(ModelConfig(**{**MODEL, **MODERN}), AdapterConfig(**ADAPTER))
    assert results["one"]["gradients"].keys() == expected.keys()
    assert results["last, one"]["gradients"].keys() == {
        "blocks.3.attention.q.adapter.a",
        "blocks.3.attention.q.adapter.b",
        "norm.weight",
    }


class OwnHead(NextToken):
    """An objective that brings a head of its own, as a reward model does."""

    def head(self, config):
        return ScalarHead(config)


def test_a_head_that_the_objective_brings_trains_too():
    config = ModelConfig(**{**MODEL, "n_layers": 1})
    model = model_on_meta(config, OwnHead(), range(1), first=True, last=True)
    adapter = AdapterConfig(rank=2, targets=("blocks.*.mlp.up",), also_train=("blocks.0.mlp_norm.*",))
    attach_adapters(model, adapter, None)

    def trained(**frozen):
        choose_trained(model, adapter, OptimizerConfig(1e-3, **frozen))
        return {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    adapters = {"blocks.0.mlp.up.adapter.a", "blocks.0.mlp.up.adapter.b"}
    head = {name for name, _ in model.named_parameters() if name.startswith("head.")}
    norm = {"blocks.0.mlp_norm.weight", "blocks.0.mlp_norm.bias"}
    assert head
    assert trained() == adapters | head | norm
    assert trained(frozen=("head.*", "*.adapter.a")) == {"blocks.0.mlp.up.adapter.b"} | norm
    choose_trained(model, adapter, None)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    usual = model_on_meta(config, NextToken(), range(1), first=True, last=True)
    attach_adapters(usual, adapter, None)
    choose_trained(usual, adapter, OptimizerConfig(1e-3))
    assert not any(p.requires_grad for name, p in usual.named_parameters() if name.startswith(("embed.", "head.")))


def bf16_engine(**changes):
    run = {"world_size": 1, "parallel": {"precision": "bf16"}, "model": {**MODERN, "n_layers": 2}, "adapter": ADAPTER}
    settings = settings_of(run)
    adapter = dataclasses.replace(settings.adapter, also_train=changes.get("also_train", ()))
    optimizer = dataclasses.replace(settings.optimizer, frozen=changes.get("frozen", ()))
    settings = dataclasses.replace(settings, adapter=adapter, optimizer=optimizer)
    engine = build_engine(settings, objective=NextToken(), device=torch.device("cpu"))
    fill_adapters(engine)
    return engine


def test_a_base_held_in_bf16_trains_bit_for_bit_as_one_in_fp32(process_group, tmp_path):
    held = bf16_engine()
    base = {name for name, _ in held.parameters if ".adapter." not in name}
    in_fp32 = bf16_engine(also_train=("*",), frozen=tuple(base))  # the adapter does not freeze it, the optimizer does
    dtypes = {name: parameter.dtype for name, parameter in held.parameters}
    assert {name for name, dtype in dtypes.items() if dtype == torch.bfloat16} == base
    assert {parameter.dtype for _, parameter in in_fp32.parameters} == {torch.float32}
    assert train(held, 3) == train(in_fp32, 3)
    ours, expected = (dict(engine.parameters) for engine in (held, in_fp32))
    for name, parameter in ours.items():
        assert torch.equal(local(parameter), local(expected[name]).to(parameter.dtype)), name
    state = {"config": {"adapter": {**ADAPTER}}}
    path = held.checkpoints.shared.save(tmp_path, step=3, state=state, keep=Retention(1))
    again = bf16_engine()
    again.checkpoints.shared.load(verify_checkpoint(path))
    assert again.weights_digest() == held.weights_digest()
    in_fp32.checkpoints.shared.load(verify_checkpoint(path))  # a resume with another precision
    assert train(in_fp32, 5, first_step=3) == train(again, 5, first_step=3)
    plain = dict(read_merged([verify_checkpoint(path)], ["model.blocks.0.mlp.up.weight", "model.norm.weight"]))
    assert [tensor.dtype for tensor in plain.values()] == [torch.float32, torch.bfloat16]
