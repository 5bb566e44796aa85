"""FSDP2 on the data axis of one process: sums of gradients in fp32, and the precision of weights and products.

tests/parallel/engines/test_layouts.py compares ZeRO stages over several ranks.
"""

import pytest
import torch
from layout_runs import MODERN, settings_of, tokens_of_step
from torch.distributed.fsdp import FSDPModule

from gpt.losses.batch import Batch
from gpt.model.rope import angles_of
from gpt.training.objective import NextToken
from parallel.axes import data_parallel
from parallel.axes.data_parallel import accumulate
from parallel.axes.initialisation import initialise_shards
from parallel.axes.reduce_scatter import ChunkReduceScatter
from parallel.axes.stage import canonical_parameters
from parallel.layout.mesh import build_mesh
from parallel.parallelize import build_stage


def stage_of(model=None, **parallel):
    settings = settings_of({"world_size": 1, "parallel": parallel, "model": {**(model or {}), "n_layers": 2}})
    objective = NextToken()
    stage = build_stage(
        settings.model,
        settings.parallel,
        build_mesh(settings.layout, torch.device("cpu")),
        index=0,
        objective=objective,
        loss=objective.loss(compile=False),
        optimizer=settings.optimizer,
    )
    initialise_shards(canonical_parameters(stage), settings.model, seed=settings.seed)
    return stage


def micro_batches(rows):
    tokens = tokens_of_step(0)
    return list(Batch(tokens[:, :-1], tokens[:, 1:]).split(rows))


def gradients(stage):
    return {name: parameter.grad.to_local() for name, parameter in canonical_parameters(stage)}


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_gradients_of_micro_batches_add_up(process_group, zero_stage):
    """Losses are sums, so 4 micro-batches of 2 rows give the gradients of one of 8."""
    parts, whole = stage_of(zero_stage=zero_stage), stage_of()
    accumulate(parts, micro_batches(2), zero_stage=zero_stage)
    whole(micro_batches(8)[0].inputs, micro_batches(8)[0]).backward()
    ours, expected = gradients(parts), gradients(whole)
    assert ours.keys() == expected.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4)
    assert len(parts.totals) == 4


@pytest.mark.parametrize(
    ("precision", "zero_stage", "passes"), [("fp32", 0, 2), ("fp32", 1, 2), ("fp32", 2, 4), ("bf16", 1, 4)]
)
def test_fsdp_passes_over_micro_batches_in_which_it_has_nothing_to_do(
    process_group, monkeypatch, precision, zero_stage, passes
):
    """In fp32, ZeRO 0 and 1 gather weights in the first of 4 micro-batches and reduce gradients in the last."""
    stage = stage_of(zero_stage=zero_stage, precision=precision)
    group = type(stage._get_fsdp_state()._fsdp_param_groups[0])
    calls = []
    for name in ("pre_forward", "pre_backward", "post_backward"):
        hook = getattr(group, name)
        monkeypatch.setattr(group, name, lambda self, *args, n=name, hook=hook: calls.append(n) or hook(self, *args))
    for _ in range(2):  # steps
        calls.clear()
        accumulate(stage, micro_batches(2), zero_stage=zero_stage)
        assert [calls.count(name) for name in ("pre_forward", "pre_backward")] == [3 * passes] * 2, "3 units"
        assert calls.count("post_backward") >= 3 * passes


@pytest.mark.parametrize(("rows", "expected"), [(2, [False, True]), (4, [False, True]), (8, [True])])
def test_fsdp_is_told_of_the_first_and_the_last_backward(process_group, monkeypatch, rows, expected):
    """Telling it visits all modules, so the passes between keep what the first was told."""
    stage, told = stage_of(), []
    tell = data_parallel.prepare_backward
    monkeypatch.setattr(
        data_parallel,
        "prepare_backward",
        lambda stage, *, last, zero_stage: told.append(last) or tell(stage, last=last, zero_stage=zero_stage),
    )
    accumulate(stage, micro_batches(rows), zero_stage=1)
    assert told == expected


def test_bf16_computes_with_copies_of_fp32_weights(process_group):
    stage, seen = stage_of(precision="bf16"), []
    block = stage.model.blocks["0"]
    block.mlp.up.register_forward_hook(lambda module, inputs, output: seen.append((module.weight.dtype, output.dtype)))
    accumulate(stage, micro_batches(4), zero_stage=1)
    assert seen == [(torch.bfloat16, torch.bfloat16)] * 2
    for name, parameter in canonical_parameters(stage):
        assert parameter.dtype == parameter.grad.dtype == torch.float32, name


def test_rotary_angles_reach_bf16_blocks_in_fp32(process_group):
    """FSDP casts the tensors that it finds in tuples and dataclasses. In bf16, cosines are off by up to 1/512."""
    stage, seen = stage_of(precision="bf16", model=MODERN), []
    stage.model.blocks["1"].attention.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    accumulate(stage, micro_batches(8), zero_stage=1)
    expected = angles_of(stage.model.config, None, length=16, device=torch.device("cpu"))
    assert torch.equal(seen[0].cos, expected.cos)
    assert torch.equal(seen[0].sin, expected.sin)


def test_every_block_and_the_stage_are_wrapped(process_group):
    stage = stage_of()
    wrapped = [name for name, module in stage.named_modules() if isinstance(module, FSDPModule)]
    assert wrapped == ["", "model.blocks.0", "model.blocks.1"]


def test_on_gloo_gradients_are_reduced_by_chunks(process_group):
    """torch's own reduce-scatter would send every rank the whole sum."""
    modules = [module for module in stage_of().modules() if isinstance(module, FSDPModule)]
    groups = [group for module in modules for group in module._get_fsdp_state()._fsdp_param_groups]
    assert [type(group._reduce_scatter_comm) for group in groups] == [ChunkReduceScatter] * len(modules)
