"""GRPO's loss against the function of TRL's trainer, values and gradients, in float64."""

from types import SimpleNamespace

import pytest
import torch

from gpt.losses.base import VocabularyOutputs, whole_vocabulary
from gpt.losses.batch import Batch
from gpt.losses.marks import IGNORE
from gpt.post_training.grpo_loss import GroupPolicyLoss

VOCAB, LENGTHS = 11, (7, 1, 5, 3)


@pytest.fixture
def rows():
    """Outputs of a head and a batch of 4 responses, which begin at position 2; numbers only where they count."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 9, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(VOCAB, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, VOCAB, (4, 9), generator=generator)
    targets[:, :2] = IGNORE
    for row, length in enumerate(LENGTHS):
        targets[row, 2 + length :] = IGNORE
    with torch.no_grad():
        now = log_probs_of(hidden, weight, targets)
    noise = torch.randn(2, 4, 9, generator=generator, dtype=torch.float64)
    scores = torch.randn(4, 1, generator=generator, dtype=torch.float64)
    mask = targets != IGNORE
    extra = {
        "old_log_probs": now + 0.4 * noise[0],
        "reference_log_probs": now + 0.5 * noise[1],
        "advantages": scores.expand(4, 9),
    }
    extra = {name: x.masked_fill(~mask, float("nan")) for name, x in extra.items()}
    return hidden, weight, Batch(targets, targets, extra=extra)


def log_probs_of(hidden, weight, targets):
    log_p = (hidden @ weight.T).log_softmax(-1)
    return log_p.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)


def trl_loss(log_probs, batch, *, beta, loss_type):
    """The loss of TRL's GRPOTrainer for these responses, without its model and accelerator."""
    trainer = pytest.importorskip("trl.trainer.grpo_trainer", reason="TRL is not installed")
    response = slice(2, None)
    mask = (batch.targets[:, response] != IGNORE).long()
    same = SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1, sync_gradients=True)
    names = ("kl", "entropy", "clip_ratio/low_mean", "clip_ratio/low_min", "clip_ratio/high_mean")
    names += ("clip_ratio/high_max", "clip_ratio/region_mean")
    recorded = {name: [] for name in names}
    this = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (log_probs[:, response], torch.zeros_like(mask), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=beta,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        loss_type=loss_type,
        epsilon_low=0.2,
        epsilon_high=0.28,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        accelerator=same,
        _entropy_bonus_enabled=False,
        _metrics={"train": recorded},
    )
    inputs = {
        "prompt_ids": batch.targets[:, :2],
        "prompt_mask": torch.ones(4, 2, dtype=torch.long),
        "completion_ids": batch.targets[:, response],
        "completion_mask": mask,
        "advantages": batch.extra["advantages"][:, 2],
        "old_per_token_logps": batch.extra["old_log_probs"][:, response].nan_to_num(0.0),
        "ref_per_token_logps": batch.extra["reference_log_probs"][:, response].nan_to_num(0.0),
        "num_items_in_batch": mask.sum(),
    }
    return trainer.GRPOTrainer._compute_loss(this, None, inputs), recorded


@pytest.mark.parametrize(("average", "loss_type"), [("response", "grpo"), ("token", "dapo")])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_value_and_gradient_equal_trl(rows, average, loss_type, beta):
    hidden, weight, batch = rows
    loss = GroupPolicyLoss(clip_low=0.2, clip_high=0.28, beta=beta, average=average)
    found = loss(VocabularyOutputs(hidden, weight, whole_vocabulary(VOCAB)), batch)
    ours = found.sum / found.count
    theirs, recorded = trl_loss(log_probs_of(hidden, weight, batch.targets), batch, beta=beta, loss_type=loss_type)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    mine, exact = (torch.autograd.grad(x, (hidden, weight), retain_graph=True) for x in (ours, theirs))
    for one, other in zip(mine, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    if average == "token":
        means = {name: (x / found.count).item() for name, x in found.metrics.items()}
        assert means["clip_fraction"] == pytest.approx(recorded["clip_ratio/region_mean"][0], abs=1e-6)
        assert not beta or means["kl"] == pytest.approx(recorded["kl"][0], rel=1e-6)


@pytest.mark.parametrize("average", ["response", "token"])
def test_the_split_into_micro_batches_changes_nothing(rows, average):
    hidden, weight, batch = rows
    loss = GroupPolicyLoss(beta=0.1, average=average)
    whole = loss(VocabularyOutputs(hidden, weight, whole_vocabulary(VOCAB)), batch)
    parts = [
        loss(VocabularyOutputs(h, weight, whole_vocabulary(VOCAB)), part)
        for h, part in zip(hidden.split(1), batch.split(1), strict=True)
    ]
    assert whole.count == sum(part.count for part in parts) == (4 if average == "response" else sum(LENGTHS))
    torch.testing.assert_close(sum(part.sum for part in parts), whole.sum, rtol=1e-12, atol=1e-12)
    for name in loss.metric_names:
        torch.testing.assert_close(sum(part.metrics[name] for part in parts), whole.metrics[name], rtol=1e-7, atol=1e-9)


def test_a_row_without_a_response_counts_nothing(rows):
    hidden, weight, batch = rows
    found = GroupPolicyLoss()(VocabularyOutputs(hidden, weight, whole_vocabulary(VOCAB)), batch.without_rows([1]))
    assert found.count == 3
    assert found.sum.isfinite()
