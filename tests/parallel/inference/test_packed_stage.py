"""Packed copies of an engine's stages: the model that training has, on a CPU, with the weights of the moment."""

from dataclasses import replace

import pytest
import torch
from layout_runs import MODERN, settings_of, tokens_of_step

from gpt.adapters.config import AdapterConfig
from gpt.inference.cpu_model import PackedBlock, can_pack
from gpt.inference.generation import generate
from gpt.inference.model import ForwardInputs
from gpt.losses.batch import Batch
from gpt.model.gpt import GPT
from gpt.training.objective import NextToken
from parallel.axes.gradients import local
from parallel.engines.native import NativeEngine
from parallel.inference.packed_stage import can_pack_stages

TOKENS = tokens_of_step(0)[:4, :9]  # (4, 9)
DEVICE = torch.device("cpu")

pytestmark = pytest.mark.skipif(not can_pack(DEVICE, torch.float32), reason="this build of torch has no oneDNN")


def engine_of(keys, *, parallel=(), adapter=None):
    settings = settings_of({"world_size": 1, "parallel": dict(parallel), "model": {**keys, "n_layers": 2}})
    settings = replace(settings, adapter=adapter)
    engine = NativeEngine(settings, objective=NextToken(), device=DEVICE)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in engine.parameters:
            local(parameter).add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return engine


def float64_logits(engine, tokens):
    """Logits (b, t, v) of the engine's weights in float64."""
    model = GPT(engine.settings.model).double()
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in engine.parameters:
            own[name].copy_(local(parameter))
        return model(tokens)


def logits_of(model, tokens):
    inputs = ForwardInputs(tokens, torch.arange(tokens.size(1)).unsqueeze(0))
    return model.next_logits(inputs, indices=torch.arange(tokens.numel())).view(*tokens.shape, -1)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("keys", [{}, MODERN], ids=["gpt3", "modern"])
def test_logits_are_those_of_float64_before_and_after_an_update(process_group, keys, recompute):
    engine = engine_of(keys, parallel={"recompute": recompute})
    before = [local(parameter).clone() for _, parameter in engine.parameters]
    for _ in range(2):
        with engine.as_model() as model:
            assert all(isinstance(block, PackedBlock) for block in model.stages[0].model.blocks.values())
            logits = logits_of(model, TOKENS)
        expected = float64_logits(engine, TOKENS)
        assert float((logits - expected).abs().max() / expected.abs().max()) < 1e-5
        assert all(torch.equal(a, local(p)) for a, (_, p) in zip(before, engine.parameters, strict=True))
        engine.forward_backward(Batch(TOKENS[:, :-1], TOKENS[:, 1:]))
        engine.optimizer_step(0.1)
        assert any(not torch.equal(a, local(p)) for a, (_, p) in zip(before, engine.parameters, strict=True))
        before = [local(parameter).clone() for _, parameter in engine.parameters]


def test_tokens_are_those_of_the_stage_itself(process_group, monkeypatch):
    engine = engine_of(MODERN)
    prompts = [[5, 3], [7], [1, 2, 3, 4], [9]]
    with engine.as_model() as model:
        packed = generate(model, prompts, n_ctx=engine.settings.model.n_ctx, max_new_tokens=8)
    monkeypatch.setattr("parallel.engines.native.can_pack_stages", lambda *_: False)
    with engine.as_model() as model:
        plain = generate(model, prompts, n_ctx=engine.settings.model.n_ctx, max_new_tokens=8)
    for ours, theirs in zip(packed, plain, strict=True):
        assert ours.tokens == theirs.tokens
        assert ours.log_probs == pytest.approx(theirs.log_probs, abs=1e-4)


def test_adapters_and_tensor_ranks_are_not_packed(process_group):
    engine = engine_of(MODERN)
    assert can_pack_stages(engine.stages, engine.mesh, torch.float32)
    assert not can_pack_stages(engine.stages, engine.mesh, torch.float64)
    two = replace(engine.mesh, layout=replace(engine.mesh.layout, tensor=2))
    assert not can_pack_stages(engine.stages, two, torch.float32)
    adapted = engine_of(MODERN, adapter=AdapterConfig(rank=2))
    assert not can_pack_stages(adapted.stages, adapted.mesh, torch.float32)
