"""The gradient of an update with pre-training data, against autograd on the whole formula."""

from typing import Any

import pytest
import torch

from gpt.losses.base import VocabularyOutputs, whole_vocabulary
from gpt.losses.batch import Batch
from gpt.post_training.ppo.objectives import PTX_SCALE, Policy
from gpt.post_training.ppo_loss import PolicyLoss

V, D, B, T = 11, 6, 3, 5


def rows(seed: int, **extra: Any) -> tuple[torch.Tensor, Batch]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(B, T, D, generator=generator, dtype=torch.float64)
    targets = torch.randint(V, (B, T), generator=generator)
    return hidden, Batch(targets, targets, extra=extra)


def test_the_pretraining_gradient_is_gamma_times_that_of_its_mean_loss() -> None:
    """grad(sum of policy losses) / n + gamma * grad(mean of pre-training losses).

    To 1e-5: the pre-training loss computes in fp32.
    """
    weight = torch.randn(V, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    old, advantages = torch.full((B, T), -2.4), torch.randn(B, T, generator=torch.Generator().manual_seed(1))
    hidden, batch = rows(2, old_log_probs=old, advantages=advantages)
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[:, 3:] = False
    batch = Batch(batch.inputs, batch.targets, loss_mask=mask, extra=batch.extra)
    loss: Any = Policy(PolicyLoss(clip=0.2)).loss(compile=False)
    gamma, n, m = 27.8, int(mask.sum()), B * T
    ptx_hidden, ptx = rows(3, **{PTX_SCALE: torch.full((B, 1), gamma * n / m)})

    shard = whole_vocabulary(V)
    policy_totals = loss(VocabularyOutputs(hidden, weight, shard), batch)
    ptx_totals = loss(VocabularyOutputs(ptx_hidden, weight, shard), ptx)
    assert int(policy_totals.count + ptx_totals.count) == n
    ((policy_totals.sum + ptx_totals.sum) / n).backward()
    found = weight.grad

    weight.grad = None
    log_probs = (hidden @ weight.T).log_softmax(-1).gather(2, batch.targets.unsqueeze(2)).squeeze(2)
    ratio = (log_probs - old).exp()
    clipped = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    cross_entropy = torch.nn.functional.cross_entropy((ptx_hidden @ weight.T).view(-1, V), ptx.targets.view(-1))
    (-clipped[mask].mean() + gamma * cross_entropy).backward()
    assert torch.allclose(found, weight.grad, rtol=1e-5, atol=1e-5)
    assert float(ptx_totals.metrics["ptx_loss"]) / m == pytest.approx(cross_entropy.item(), abs=1e-6)
    assert float(policy_totals.metrics["ptx_loss"]) == 0.0
    assert policy_totals.metrics.keys() == ptx_totals.metrics.keys() == set(loss.metric_names)
