"""PPO's losses against a loop over tokens in float64: values, gradients, metrics, and what must not count."""

import pytest
import torch

from gpt.losses.base import TokenValues, VocabularyOutputs, whole_vocabulary
from gpt.losses.batch import Batch
from gpt.losses.marks import IGNORE
from gpt.post_training.ppo_loss import PolicyLoss, ValueLoss

VOCAB, CLIP = 11, 0.2


@pytest.fixture
def rows():
    """Outputs of a head and a batch of 4 rows with responses of 1 to 7 tokens; NaN outside them."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 9, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(VOCAB, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, VOCAB, (4, 9), generator=generator)
    for row, (start, end) in enumerate(((1, 8), (3, 4), (0, 5), (4, 9))):
        targets[row, :start] = targets[row, end:] = IGNORE
    with torch.no_grad():
        now = log_probs_of(hidden, weight, targets)
    mask = targets != IGNORE
    old = now + 0.4 * torch.randn(4, 9, generator=generator, dtype=torch.float64)
    extra = {
        "old_log_probs": old.masked_fill(~mask, float("nan")),
        "advantages": torch.randn(4, 9, generator=generator, dtype=torch.float64).masked_fill(~mask, float("nan")),
        "returns": torch.randn(4, 9, generator=generator, dtype=torch.float64).masked_fill(~mask, float("nan")),
        "old_values": torch.randn(4, 9, generator=generator, dtype=torch.float64).masked_fill(~mask, float("nan")),
    }
    return hidden, weight, Batch(targets, targets, extra=extra)


def log_probs_of(hidden, weight, targets, temperature=1.0):
    log_p = ((hidden @ weight.T) / temperature).log_softmax(-1)
    return log_p.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)


def outputs_of(hidden, weight):
    return VocabularyOutputs(hidden, weight, whole_vocabulary(VOCAB))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_policy_loss_equals_a_loop_over_tokens(rows, temperature):
    hidden, weight, batch = rows
    found = PolicyLoss(clip=CLIP, temperature=temperature)(outputs_of(hidden, weight), batch)
    now = log_probs_of(hidden, weight, batch.targets, temperature)
    losses, sums = [], dict.fromkeys(PolicyLoss.metric_names, 0.0)
    for row, column in (batch.targets != IGNORE).nonzero().tolist():
        advantage, old = (batch.extra[name][row, column] for name in ("advantages", "old_log_probs"))
        ratio = (now[row, column] - old).exp()
        free, clipped = -advantage * ratio, -advantage * ratio.clamp(1 - CLIP, 1 + CLIP)
        losses.append(torch.maximum(free, clipped))
        p = ((hidden[row, column] @ weight.T) / temperature).softmax(-1)
        sums["clip_fraction"] += float(clipped > free)
        sums["ratio_error"] += (ratio - 1).abs().item()
        sums["update_kl"] += (ratio - 1 - ratio.log()).item()
        sums["entropy"] += -(p * p.log()).sum().item()
    expected = torch.stack(losses).sum()
    torch.testing.assert_close(found.sum, expected, rtol=1e-12, atol=1e-12)
    assert found.count == len(losses) == 18
    assert {name: x.item() for name, x in found.metrics.items()} == pytest.approx(sums, rel=1e-10)
    assert 0 < sums["clip_fraction"] < 18, "some tokens are clipped, some are not"
    ours = torch.autograd.grad(found.sum, (hidden, weight), retain_graph=True)
    for mine, exact in zip(ours, torch.autograd.grad(expected, (hidden, weight)), strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-10, atol=1e-12)


def test_before_the_first_update_the_ratio_is_exactly_1(rows):
    hidden, weight, batch = rows
    loss = PolicyLoss(temperature=0.7)
    assert isinstance(loss, TokenValues)
    old = loss.values(outputs_of(hidden, weight), batch).detach()
    extra = {**batch.extra, "old_log_probs": old}
    found = loss(outputs_of(hidden, weight), Batch(batch.inputs, batch.targets, extra=extra))
    assert found.metrics["ratio_error"] == 0
    assert found.metrics["update_kl"] == 0
    assert found.metrics["clip_fraction"] == 0


@pytest.mark.parametrize("rows_per_micro_batch", [1, 3])
def test_the_split_into_micro_batches_of_unequal_length_changes_nothing(rows, rows_per_micro_batch):
    """verl 2996 and 6280: means of micro-batches weigh the tokens of short responses more."""
    hidden, weight, batch = rows
    whole = PolicyLoss()(outputs_of(hidden, weight), batch)
    parts = [
        PolicyLoss()(outputs_of(h, weight), part)
        for h, part in zip(hidden.split(rows_per_micro_batch), batch.split(rows_per_micro_batch), strict=True)
    ]
    torch.testing.assert_close(sum(part.sum for part in parts), whole.sum, rtol=1e-12, atol=1e-12)
    assert sum(part.count for part in parts) == whole.count
    for name in PolicyLoss.metric_names:
        total = sum(part.metrics[name] for part in parts)
        torch.testing.assert_close(total, whole.metrics[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", [PolicyLoss(), ValueLoss()])
def test_rows_outside_the_mask_and_padding_do_not_count(rows, loss):
    hidden, weight, batch = rows
    outputs = outputs_of(hidden, weight) if isinstance(loss, PolicyLoss) else hidden[..., :1]
    found = loss(outputs, batch.without_rows([0, 2]))
    keep = [1, 3]
    alone = Batch(batch.inputs[keep], batch.targets[keep], extra={name: x[keep] for name, x in batch.extra.items()})
    part = outputs_of(hidden[keep], weight) if isinstance(loss, PolicyLoss) else hidden[keep][..., :1]
    expected = loss(part, alone)
    torch.testing.assert_close(found.sum, expected.sum, rtol=1e-12, atol=1e-12)
    assert found.count == expected.count == 6
    (gradient,) = torch.autograd.grad(found.sum, hidden)
    assert gradient.isfinite().all()
    assert not gradient[batch.targets == IGNORE].any()
    assert not gradient[[0, 2]].any()


@pytest.mark.parametrize("clip", [0.2, None])
def test_the_value_loss_equals_a_loop_over_tokens(rows, clip):
    hidden, _, batch = rows
    found = ValueLoss(clip)(hidden[..., :1], batch)
    losses, n_clipped = [], 0
    for row, column in (batch.targets != IGNORE).nonzero().tolist():
        value, old, goal = hidden[row, column, 0], *(batch.extra[k][row, column] for k in ("old_values", "returns"))
        free = (value - goal) ** 2
        clipped = free if clip is None else (value.clamp(old - clip, old + clip) - goal) ** 2
        losses.append(0.5 * torch.maximum(free, clipped))
        n_clipped += int(clipped > free)
    expected = torch.stack(losses).sum()
    torch.testing.assert_close(found.sum, expected, rtol=1e-12, atol=1e-12)
    assert (found.count, found.metrics["value_clip_fraction"]) == (18, n_clipped)
    (ours,), (exact,) = (torch.autograd.grad(x, hidden, retain_graph=True) for x in (found.sum, expected))
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


def test_the_values_of_a_critic_with_a_mean_are_those_of_the_text_so_far(rows):
    hidden, _, batch = rows
    values = ValueLoss(mean=True).values(hidden[..., :1], batch)
    for column in range(values.size(1)):
        expected = hidden[:, : column + 1, 0].mean(1)
        torch.testing.assert_close(values[:, column], expected, rtol=1e-12, atol=1e-12)


def test_the_values_of_a_critic_are_its_outputs(rows):
    hidden, _, batch = rows
    values = ValueLoss().values(hidden[..., :1].bfloat16(), batch)
    assert values.dtype == torch.float32
    assert torch.equal(values, hidden[..., 0].bfloat16().float())
