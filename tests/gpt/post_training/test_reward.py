"""The loss of a reward model against a loop over pairs, and the scores of a row against one completion at a time."""

import itertools
import math
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from gpt.data.sampling import Samples
from gpt.losses.marks import IGNORE, PADDING
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from gpt.post_training.config import RewardConfig
from gpt.post_training.reward import RewardLoss, pairwise_loss

MODEL = ModelConfig(vocab_size=50, n_ctx=8, n_layers=2, d_model=16, n_heads=2)


def loop_over_pairs(rewards, levels, prompts):
    """(loss, prompts with a pair, accuracy, margin, reward) as sums over prompts, pair by pair in Python's floats."""
    sums = np.zeros(5)
    for row_rewards, row_levels, row_prompts in zip(rewards, levels, prompts, strict=True):
        for prompt in set(row_prompts) - {PADDING}:
            of_prompt = [
                (r, level)
                for r, level, p in zip(row_rewards, row_levels, row_prompts, strict=True)
                if p == prompt and level != IGNORE
            ]
            pairs = [(b[0] - w[0]) for b, w in itertools.permutations(of_prompt, 2) if b[1] > w[1]]
            if pairs:
                sums[0] += sum(math.log1p(math.exp(-d)) for d in pairs) / len(pairs)
                sums[1] += 1
                sums[2] += sum(1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in pairs) / len(pairs)
                sums[3] += sum(pairs) / len(pairs)
                sums[4] += sum(r for r, _ in of_prompt) / len(of_prompt)
    return sums


def random_slots(seed, rows=6, c=24):
    """Rewards with some equal ones, levels with ties and holes, and prompts of one to nine completions."""
    draw = np.random.default_rng(seed)
    rewards = torch.from_numpy(draw.normal(size=(rows, c)).round(1) * 3).requires_grad_()
    levels, prompts = np.full((rows, c), IGNORE), np.full((rows, c), PADDING)
    for row in range(rows):
        at, prompt = 0, 0
        while at < c - 5:
            k = min(int(draw.integers(1, 10)), c - at)
            levels[row, at : at + k], prompts[row, at : at + k] = draw.integers(0, 3, size=k), prompt
            at, prompt = at + k, prompt + 1
    return rewards, torch.from_numpy(levels), torch.from_numpy(prompts)


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_and_its_metrics_equal_a_loop_over_pairs(seed):
    rewards, levels, prompts = random_slots(seed)
    found = pairwise_loss(rewards, levels, prompts)
    expected = loop_over_pairs(rewards.tolist(), levels.tolist(), prompts.tolist())
    numbers = [found.sum, found.count, *(found.metrics[name] for name in RewardLoss.metric_names)]
    assert [number.item() for number in numbers] == pytest.approx(expected, abs=1e-12, rel=1e-12)
    assert 0 < found.count < sum(len(set(row) - {PADDING}) for row in prompts.tolist()), "some prompts have no pair"


def test_the_gradient_equals_that_of_a_loop_over_pairs():
    rewards, levels, prompts = random_slots(7)
    (ours,) = torch.autograd.grad(pairwise_loss(rewards, levels, prompts).sum, rewards)
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(rewards)):
        for prompt in set(prompts[row].tolist()) - {PADDING}:
            at = [i for i in range(prompts.size(1)) if prompts[row, i] == prompt]
            pairs = [
                -functional.logsigmoid(rewards[row, i] - rewards[row, j])
                for i, j in itertools.permutations(at, 2)
                if levels[row, i] > levels[row, j]
            ]
            if pairs:
                total = total + torch.stack(pairs).mean()
    (theirs,) = torch.autograd.grad(total, rewards)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


def test_ties_and_empty_rows_count_nothing_and_have_no_gradient():
    rewards = torch.tensor([[3.0, -2.0, 9.0]], requires_grad=True)
    for levels, prompts in (([[1, 1, 1]], [[0, 0, 0]]), ([[IGNORE] * 3], [[PADDING] * 3]), ([[2, 1, 0]], [[0, 1, 2]])):
        found = pairwise_loss(rewards, torch.tensor(levels), torch.tensor(prompts))
        assert (found.sum.item(), found.count.item()) == (0, 0)
        (gradient,) = torch.autograd.grad(found.sum, rewards)
        assert not gradient.any()


def test_two_completions_have_trls_loss():
    trl = pytest.importorskip("trl")
    draw = torch.Generator().manual_seed(3)
    rewards = torch.randn(16, 2, generator=draw) * 3
    better_first = torch.rand(16, generator=draw) < 0.5
    levels = torch.stack((better_first.long(), 1 - better_first.long()), dim=1)
    ours = pairwise_loss(rewards, levels, torch.zeros_like(levels))
    chosen, rejected = (rewards.gather(1, at.view(-1, 1)) for at in (levels.argmax(1), levels.argmin(1)))
    metrics = {"train": defaultdict(list)}
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(center_rewards_coefficient=None),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _total_train_tokens=0,
        _tp_size=1,
        _metrics=metrics,
    )
    inputs = {"attention_mask": torch.ones(32, 1)}
    loss = trl.RewardTrainer.compute_loss(
        trainer, lambda **_: SimpleNamespace(logits=torch.cat((chosen, rejected))), inputs
    )
    assert (ours.sum / ours.count).item() == pytest.approx(loss.item(), abs=1e-6)
    assert (ours.metrics["accuracy"] / ours.count).item() == pytest.approx(metrics["train"]["accuracy"][0], abs=1e-6)
    assert (ours.metrics["margin"] / ours.count).item() == pytest.approx(metrics["train"]["margin"][0], abs=1e-6)


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_a_row_scores_each_completion_as_if_it_were_alone(pool):
    """The row is longer than the model's context: attention and positions restart at each conversation."""
    objective = RewardConfig(pool=pool).build(z_loss=0.0)
    model = GPT(MODEL, embed=objective.front(MODEL), head=objective.head(MODEL))
    initialise(model, MODEL, seed=1)
    model.double()
    draw = np.random.default_rng(2)
    lengths, levels = [6, 8, 3], [2, 0, 1]
    completions = [draw.integers(0, 50, size=length) for length in lengths]
    t = 20
    tokens, ids, marks = np.zeros((2, t + 1), dtype=np.int64), np.full((2, t + 1), PADDING), np.zeros((2, t + 1), int)
    tokens[0, :17], ids[0, :17] = np.concatenate(completions), 0
    marks[0, np.cumsum(lengths) - 1] = np.array(levels) + 1
    batch = objective.batch(Samples(tokens, ids, {"marks": marks}))
    mask = objective.attention_mask(batch)
    values = model(batch.inputs, positions=batch.positions, mask=mask)  # (2, t, 1)
    found = objective.loss(compile=False)(values, batch)
    of_tokens = [model(torch.from_numpy(ids)[None])[0, :, 0] for ids in completions]
    alone = [(values[-1] if pool == "last" else values.mean()).item() for values in of_tokens]
    rewards = objective.loss(compile=False).values(values, batch)
    assert rewards[0, np.cumsum(lengths) - 1].tolist() == pytest.approx(alone, abs=1e-12)
    expected = loop_over_pairs([alone], [levels], [[0, 0, 0]])
    assert (found.sum.item(), found.count.item()) == pytest.approx((expected[0], 1), abs=1e-12)
    assert found.metrics["reward"].item() == pytest.approx(expected[4], abs=1e-12)
    nothing = objective.loss(compile=False)(values, batch.without_rows([0]))
    assert (nothing.sum.item(), nothing.count.item()) == (0, 0)
    assert torch.equal(rewards, values[..., 0]) == (pool == "last")


def test_the_head_starts_with_the_deviation_of_the_paper():
    wide = ModelConfig(vocab_size=50, n_ctx=8, n_layers=1, d_model=1024, n_heads=2)
    head = RewardConfig().build(z_loss=0.0).head(wide)
    model = GPT(wide, head=head)
    initialise(model, wide, seed=1)
    assert head.value.weight.std().item() == pytest.approx(1025**-0.5, rel=0.1)
    assert not head.value.bias.any()
