"""A stage of tensor ranks on plain tensors, on one process. test_model.py compares generation over several ranks."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from layout_runs import MODERN, settings_of, tokens_of_step
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from gpt.training.objective import NextToken
from parallel.axes.sequence_shards import tensor_ranks
from parallel.axes.stage import CachedStep, ModelStage, canonical_parameters
from parallel.axes.tensor_parallel import apply_tensor_parallel
from parallel.inference.local_stage import stages_for_inference
from parallel.layout.mesh import build_mesh

TOKENS = tokens_of_step(0)[:, :7]  # (8, 7)


class Operations(TorchDispatchMode):
    """Counts the collectives and the operations on DTensors."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(issubclass(t, DTensor) for t in types):
            self.counts["DTensor"] += 1
            return NotImplemented
        if function.namespace in ("c10d", "_c10d_functional"):
            self.counts[function._schema.name.split("::")[1]] += 1
        return function(*args, **(kwargs or {}))


def plain_stage_of(keys):
    """A whole model as one process runs it, and its stage of a tensor axis that here has one rank."""
    settings = settings_of({"world_size": 1, "parallel": {}, "model": {**keys, "n_layers": 2}})
    mesh = build_mesh(settings.layout, torch.device("cpu"))
    model, sharded = GPT(settings.model), GPT(settings.model)
    for part in (model, sharded):
        initialise(part, settings.model, seed=1)
    ranks = tensor_ranks(mesh.tensor, splits_sequence=True, splits_backward=False)
    apply_tensor_parallel(sharded, settings.model, mesh.tensor, ranks)
    objective = NextToken()
    stage = ModelStage(sharded, objective.loss(compile=False), attention_mask=objective.attention_mask, ranks=None)
    two = replace(mesh, layout=replace(mesh.layout, tensor=2))  # so that the stage is rebuilt
    (plain,) = stages_for_inference([stage], two, config=settings.model, objective=objective, free=False)
    return model, stage, plain


@pytest.mark.parametrize("keys", [{}, MODERN], ids=["gpt3", "modern"])
@torch.no_grad()
def test_the_logits_are_those_of_one_process_without_dtensors(process_group, keys):
    model, _, plain = plain_stage_of(keys)
    indices = torch.arange(TOKENS.numel())
    step = CachedStep(torch.arange(7).unsqueeze(0), None, None, indices)
    with Operations() as operations:
        logits = plain(TOKENS, step=step)
    torch.testing.assert_close(logits, model(TOKENS).flatten(0, 1), rtol=1e-6, atol=1e-6)
    assert dict(operations.counts) == {"allreduce_": 1 + 2 * 2, "allgather_": 1}, "embedding, 2 blocks; head"
    scores = plain(TOKENS, step=replace(step, targets=TOKENS.flatten()))
    expected = logits.log_softmax(-1).gather(1, TOKENS.flatten().unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(scores[0], expected, rtol=1e-5, atol=1e-5)


def test_no_parameter_is_copied(process_group):
    _, stage, plain = plain_stage_of({})
    held = {parameter.to_local().data_ptr() for _, parameter in canonical_parameters(stage)}
    assert {parameter.data_ptr() for _, parameter in canonical_parameters(plain)} == held
    assert not any(parameter.requires_grad for parameter in plain.parameters())


def test_one_tensor_rank_runs_the_stage_itself(process_group):
    settings = settings_of({"world_size": 1, "parallel": {}})
    mesh = build_mesh(settings.layout, torch.device("cpu"))
    stages = [torch.nn.Identity()]
    assert stages_for_inference(stages, mesh, config=settings.model, objective=NextToken(), free=False) is stages
