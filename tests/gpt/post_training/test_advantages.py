"""Rewards, GAE, whitening and group advantages: against loops in float64, and what must not count.

The faults in the names were found in other programs; shared/reference/instructgpt.md lists them.
"""

import pytest
import torch

from gpt.post_training.advantages import (
    gae,
    group_advantages,
    last_index,
    moments,
    token_rewards,
    whiten,
)

NAN = float("nan")


def responses(*, n=5, t=12, seed=0):
    """Random numbers (n, t), NaN outside of responses of unequal length that begin at unequal positions."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(n, t, dtype=torch.bool)
    for row in range(n):
        start, length = row % 3 + 1, 2 + (3 * row) % 7
        mask[row, start : start + length] = True
    draws = torch.randn(4, n, t, generator=generator, dtype=torch.float64)
    return mask, *(draw.masked_fill(~mask, NAN) for draw in draws)


def exact_gae(rewards, values, positions, discount, gae_lambda):
    """Equation 16 of arXiv 1506.02438 as a double sum over the steps of one response."""
    r, v = [rewards[p].item() for p in positions], [values[p].item() for p in positions]
    deltas = [r[i] + discount * (v[i + 1] if i + 1 < len(v) else 0.0) - v[i] for i in range(len(r))]
    return [sum((discount * gae_lambda) ** (k - i) * deltas[k] for k in range(i, len(r))) for i in range(len(r))]


@pytest.mark.parametrize(("discount", "gae_lambda"), [(1.0, 0.95), (0.9, 0.7), (1.0, 1.0), (1.0, 0.0)])
def test_gae_equals_the_double_sum_of_the_paper(discount, gae_lambda):
    mask, rewards, values, *_ = responses()
    advantages, returns = gae(rewards, values, mask, discount=discount, gae_lambda=gae_lambda)
    for row in range(len(mask)):
        positions = mask[row].nonzero().flatten()
        exact = torch.tensor(exact_gae(rewards[row], values[row], positions, discount, gae_lambda), dtype=torch.float64)
        torch.testing.assert_close(advantages[row][positions], exact, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(returns[row][positions], exact + values[row][positions], rtol=1e-12, atol=1e-12)
    assert not advantages[~mask].any(), "NaN outside the responses must not come in"
    assert not returns[~mask].any()


def test_gae_equals_the_recursion_of_trl_where_responses_are_whole():
    """TRL 0.29, its last version with PPO, runs one recursion over all columns; it is right without gaps."""
    mask, rewards, values, *_ = responses()
    rewards, values = rewards.nan_to_num(0.0), values.nan_to_num(0.0)
    ours, _ = gae(rewards, values, mask, discount=0.99, gae_lambda=0.95)
    last, columns = torch.zeros(len(mask), dtype=torch.float64), []
    for i in reversed(range(mask.size(1))):
        following = values[:, i + 1] if i + 1 < mask.size(1) else 0.0
        last = rewards[:, i] + 0.99 * following - values[:, i] + 0.99 * 0.95 * last
        columns.append(last)
    theirs = torch.stack(columns[::-1], dim=1)
    torch.testing.assert_close(ours[mask], theirs[mask], rtol=1e-12, atol=1e-12)


def test_gae_skips_tokens_that_are_not_trained():
    """AReaL PR 1346: a gap, such as the output of a tool, is no step of the policy."""
    rewards = torch.tensor([[0.0, 1.0, 9.0, 9.0, 2.0]], dtype=torch.float64)
    values = torch.tensor([[0.5, 0.3, 7.0, 7.0, 0.1]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False, False, True]])
    with_gap, _ = gae(rewards, values, mask, discount=0.9, gae_lambda=0.8)
    kept = mask[0]
    without, _ = gae(rewards[:, kept], values[:, kept], mask[:, kept], discount=0.9, gae_lambda=0.8)
    assert with_gap[0, kept].tolist() == without[0].tolist()
    assert with_gap[0, ~kept].tolist() == [0.0, 0.0]


def test_the_score_stands_on_the_last_response_token_not_on_padding_behind_it():
    """TRL 3750."""
    mask, log_probs, reference, _, _ = responses()
    scores = torch.arange(1.0, 6.0, dtype=torch.float64)
    last = last_index(mask)
    rewards = token_rewards(log_probs, reference, scores, mask=mask, last=last, beta=0.0)
    for row in range(len(mask)):
        end = mask[row].nonzero().max()
        assert rewards[row, end] == scores[row]
        assert rewards[row].count_nonzero() == 1


def test_the_score_is_not_off_by_one():
    """gpt-neox PR 1285: the choice of the end token gets it, so the last advantage is score - value there."""
    mask = torch.tensor([[False, True, True, False]])
    values = torch.tensor([[9.0, 0.2, 0.7, 9.0]])
    zeros = torch.zeros(1, 4)
    rewards = token_rewards(zeros, zeros, torch.tensor([5.0]), mask=mask, last=last_index(mask), beta=1.0)
    advantages, _ = gae(rewards, values, mask, discount=1.0, gae_lambda=1.0)
    assert advantages[0].tolist() == pytest.approx([0.0, 4.8, 4.3, 0.0])


def test_each_token_pays_for_its_own_divergence():
    mask, log_probs, reference, _, _ = responses()
    rewards = token_rewards(log_probs, reference, torch.zeros(5), mask=mask, last=last_index(mask), beta=0.02)
    torch.testing.assert_close(rewards[mask], -0.02 * (log_probs - reference)[mask], rtol=1e-12, atol=0)
    assert not rewards[~mask].any()


def test_a_row_without_a_response_gets_nothing():
    mask = torch.zeros(1, 4, dtype=torch.bool)
    zeros = torch.zeros(1, 4)
    rewards = token_rewards(zeros, zeros, torch.tensor([5.0]), mask=mask, last=last_index(mask), beta=1.0)
    assert not rewards.any()
    assert not gae(rewards, zeros, mask)[0].any()


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_counts_only_the_mask(shift_mean):
    mask, x, *_ = responses()
    found = whiten(x, mask, shift_mean=shift_mean)
    kept = x[mask]
    expected = (kept - kept.mean()) / (kept.var() + 1e-8).sqrt() + (0 if shift_mean else kept.mean())
    torch.testing.assert_close(found[mask], expected, rtol=1e-10, atol=1e-12)
    assert not found[~mask].any()


def test_whitening_of_parts_with_the_sums_of_all_equals_the_whole():
    """Each data rank holds some rows."""
    mask, x, *_ = responses()
    parts = [slice(0, 2), slice(2, 5)]
    sums = sum(moments(x[rows], mask[rows]) for rows in parts)
    found = torch.cat([whiten(x[rows], mask[rows], sums) for rows in parts])
    torch.testing.assert_close(found, whiten(x, mask), rtol=1e-12, atol=1e-12)


def test_one_number_is_not_whitened():
    mask = torch.tensor([[True, False]])
    assert whiten(torch.tensor([[3.0, NAN]]), mask).tolist() == [[3.0, 0.0]]


def test_group_advantages_equal_grpo():
    scores = torch.tensor([1.0, 2.0, 4.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    first = scores[:3]
    expected = torch.cat(((first - first.mean()) / (first.std() + 1e-4), torch.zeros(3, dtype=torch.float64)))
    torch.testing.assert_close(group_advantages(scores, group_size=3), expected, rtol=1e-12, atol=1e-12)
    unscaled = group_advantages(scores, group_size=3, scale=False)
    torch.testing.assert_close(unscaled[:3], first - first.mean(), rtol=1e-12, atol=0)


def test_a_score_that_is_not_a_number_moves_no_other():
    found = group_advantages(torch.tensor([1.0, NAN, 3.0]), group_size=3, scale=False)
    assert found.tolist() == [-1.0, 0.0, 1.0]
