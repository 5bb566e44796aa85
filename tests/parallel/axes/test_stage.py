"""A pipeline stage on one device: its loss, its hidden states, its answers in generation, and its parameters' names."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional

from gpt.losses.batch import Batch
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from gpt.training.objective import NextToken
from parallel.axes.sequence_shards import tensor_ranks
from parallel.axes.stage import CachedStep, ModelStage, canonical_name, canonical_parameters
from parallel.axes.tensor_parallel import sharded_head_outputs

CONFIG = ModelConfig(vocab_size=30, n_ctx=8, n_layers=2, d_model=16, n_heads=2, positions="rope")
TOKENS = torch.randint(0, 30, (3, 9), generator=torch.Generator().manual_seed(0))
BATCH = Batch(TOKENS[:, :-1], TOKENS[:, 1:])


def model_of(config=CONFIG, layers=None, **ends):
    model = GPT(config, layers, **ends)
    initialise(model, config, seed=1)
    return model


def stage_of(model, *, z_loss=0.0):
    objective = NextToken(z_loss)
    loss = objective.loss(compile=False)
    return ModelStage(model, loss, attention_mask=objective.attention_mask, ranks=None)


@pytest.mark.parametrize("splits_backward", [False, True])
def test_the_gradient_of_the_head_is_copied_only_if_backward_passes_are_split(process_group, splits_backward):
    mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("tp",))
    ranks = tensor_ranks(mesh, splits_sequence=False, splits_backward=splits_backward)
    hidden = torch.randn(2, 8, 16, requires_grad=True)
    outputs = sharded_head_outputs(model_of().head, hidden, ranks)
    gradient = torch.randn(2, 8, 16)
    (found,) = torch.autograd.grad(outputs.hidden, hidden, gradient)
    assert (found.data_ptr() != gradient.data_ptr()) is splits_backward


def test_the_last_stage_gives_the_summed_loss_and_collects_totals():
    model = model_of()
    stage = stage_of(model, z_loss=1e-3)
    logits = model(BATCH.inputs)
    expected = functional.cross_entropy(logits.flatten(0, 1), BATCH.targets.flatten(), reduction="sum")
    total = stage(BATCH.inputs, BATCH)
    reported, count, z_loss = stage.totals[0]
    torch.testing.assert_close(reported, expected.detach())
    torch.testing.assert_close(total, expected + z_loss)
    assert count == BATCH.targets.numel()
    with torch.no_grad():
        stage(BATCH.inputs, BATCH)
    assert len(stage.totals[1]) == 2, "z-loss is no metric of evaluation"


def test_a_batch_may_come_as_tensors_by_name():
    """As torch's pipeline schedules pass it, for each micro-batch."""
    stage = stage_of(model_of())
    fields = {name: tensor for name, tensor in BATCH.tensors().items() if name != "inputs"}
    assert torch.equal(stage(BATCH.inputs, **fields), stage(BATCH.inputs, BATCH))


def test_two_stages_in_a_row_are_the_whole_model():
    whole = stage_of(model_of())
    first = stage_of(model_of(layers=range(1), last=False))
    last = stage_of(model_of(layers=range(1, 2), first=False))
    last.model.head.weight.data.copy_(first.model.embed.tokens.weight)  # tied
    ids = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]] * 3)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]] * 3)
    for batch in (BATCH, Batch(BATCH.inputs, BATCH.targets, positions=positions, segment_ids=ids)):
        hidden = first(batch.inputs, batch)
        assert hidden.shape == (3, 8, 16)
        assert torch.equal(last(hidden, batch), whole(batch.inputs, batch))


def test_a_frozen_stage_still_lets_a_backward_pass_through():
    """Schedules run one for every stage, and torch refuses an output without a graph."""
    stage = stage_of(model_of(layers=range(1), last=False))
    stage.requires_grad_(False)
    hidden = stage(BATCH.inputs, BATCH)
    hidden.sum().backward()
    assert all(parameter.grad is None for parameter in stage.parameters())
    with torch.no_grad():
        assert not stage(BATCH.inputs, BATCH).requires_grad


def test_a_cached_step_answers_for_the_named_tokens():
    model = model_of()
    stage, tokens = stage_of(model), BATCH.inputs
    positions, indices = torch.arange(8).unsqueeze(0), torch.tensor([3, 8 + 7])
    with torch.no_grad():
        logits = stage(tokens, step=CachedStep(positions, None, None, indices))
        assert logits.shape == (2, 30)
        torch.testing.assert_close(logits, model(tokens).flatten(0, 1)[indices])
        targets = torch.stack((logits[0].argmax(), logits[1].argmin()))
        scores = stage(tokens, step=CachedStep(positions, None, None, indices, targets))
    log_probs = logits.log_softmax(-1)[torch.arange(2), targets]
    torch.testing.assert_close(scores, torch.stack((log_probs, torch.tensor([1.0, 0.0]))))


def test_names_are_those_of_the_whole_model_on_one_device():
    model = model_of()
    assert [name for name, _ in canonical_parameters(stage_of(model))] == [name for name, _ in model.named_parameters()]
    assert canonical_name("model.blocks.1._checkpoint_wrapped_module.mlp.up.weight", model) == "blocks.1.mlp.up.weight"
    last = model_of(layers=range(1, 2), first=False)
    assert canonical_name("model.head.weight", last) == "embed.tokens.weight", "tied, though on another stage"
    untied = model_of(ModelConfig(vocab_size=30, n_ctx=8, n_layers=2, d_model=16, n_heads=2, tied=False))
    assert canonical_name("model.head.weight", untied) == "head.weight"
