"""The loss of DPO against TRL's trainer and against a loop over pairs, and the batch that rankings make."""

import itertools
import math
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from gpt.data.sampling import Samples
from gpt.errors import ConfigError
from gpt.losses.base import VocabularyOutputs, whole_vocabulary
from gpt.losses.marks import IGNORE, PADDING
from gpt.post_training.config import DPOConfig
from gpt.post_training.dpo import PreferenceLoss, Preferences
from gpt.training.objective import ReferencedObjective

VOCAB, T, BETA = 23, 40, 0.3


def rankings(completions, *, seed=0):
    """Samples with one prompt a row. `completions`: for each row the levels of its completions. The first token or two
    of each conversation are a prompt, and another one in its middle is not learned."""
    draw = np.random.default_rng(seed)
    shape = len(completions), T + 1
    tokens, ids = np.zeros(shape, np.int64), np.full(shape, PADDING)
    marks, learned = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, levels in enumerate(completions):
        at = 0
        for level in levels:
            prompt, length = int(draw.integers(1, 3)), int(draw.integers(4, 9))
            tokens[row, at : at + length], ids[row, at : at + length] = draw.integers(0, VOCAB, size=length), 0
            learned[row, at + prompt : at + length] = 1
            learned[row, at + prompt + 1] = 0
            at += length
            marks[row, at - 1] = 1 + level
    return Samples(tokens, ids, {"marks": marks, "learned": learned})


def outputs(rows, *, seed=1):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, T, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(VOCAB, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    return VocabularyOutputs(hidden, weight, whole_vocabulary(VOCAB))


def sequence_log_probs(samples, out):
    """Of each completion of each row the sum over its learned tokens, token by token: a list of 0-d tensors a row."""
    log_p = (out.hidden @ out.weight.T).log_softmax(-1)
    found = []
    for row in range(len(samples)):
        ends = [i for i in range(T) if samples.streams["marks"][row, i]]
        starts = [0, *(end + 1 for end in ends)]
        found.append(
            [
                sum(
                    (
                        log_p[row, i - 1, samples.tokens[row, i]]
                        for i in range(start + 1, end + 1)
                        if samples.streams["learned"][row, i]
                    ),
                    start=torch.zeros((), dtype=torch.float64),
                )
                for start, end in zip(starts, ends, strict=False)
            ]
        )
    return found


def batch_and_reference(samples):
    """The batch, with a reference model's values, and that model's outputs."""
    objective = Preferences(BETA)
    assert isinstance(objective, ReferencedObjective)
    batch, reference = objective.batch(samples), outputs(len(samples), seed=2)
    values = objective.loss(compile=False).values(reference, batch).detach()
    return objective.with_reference(batch, values), reference


COMPLETIONS = [[1, 0], [0, 2, 1, 2], [0, 0], [3], [0, 1, 2, 3, 4]]


def test_the_loss_and_its_gradient_equal_a_loop_over_pairs():
    samples, policy = rankings(COMPLETIONS), outputs(len(COMPLETIONS))
    batch, reference = batch_and_reference(samples)
    found = PreferenceLoss(BETA)(policy, batch)
    theirs = sequence_log_probs(samples, reference)
    total, right, n_prompts = 0.0, 0.0, 0
    for row, (mine, levels) in enumerate(zip(sequence_log_probs(samples, policy), COMPLETIONS, strict=True)):
        rewards = [BETA * (a - b.detach()) for a, b in zip(mine, theirs[row], strict=True)]
        pairs = [(a, b) for a, b in itertools.permutations(range(len(levels)), 2) if levels[a] > levels[b]]
        if pairs:
            total = total - sum(functional.logsigmoid(rewards[a] - rewards[b]) for a, b in pairs) / len(pairs)
            right += sum(float(rewards[a] > rewards[b]) for a, b in pairs) / len(pairs)
            n_prompts += 1
    assert found.count == n_prompts == 3
    torch.testing.assert_close(found.sum, total, rtol=1e-12, atol=1e-12)
    assert found.metrics["accuracy"].item() == pytest.approx(right)
    wrt = (policy.hidden, policy.weight)
    for ours, exact in zip(torch.autograd.grad(found.sum, wrt), torch.autograd.grad(total, wrt), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-12)


def trl_loss(chosen, rejected, reference_chosen, reference_rejected):
    """The loss of TRL's DPOTrainer for pairs of sequence log-probabilities (n,), without its model and accelerator."""
    trainer = pytest.importorskip("trl.trainer.dpo_trainer", reason="TRL is not installed")
    log_probs = torch.cat((chosen, rejected)).unsqueeze(1)  # one token a sequence
    zeros, ones = torch.zeros_like(log_probs), torch.ones(len(log_probs), 2, dtype=torch.long)
    given = SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    this = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        beta=BETA,
        use_weighting=False,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    inputs = {
        "input_ids": ones,
        "attention_mask": ones,
        "completion_mask": ones,
        "ref_chosen_logps": reference_chosen,
        "ref_rejected_logps": reference_rejected,
    }
    loss = trainer.DPOTrainer._compute_loss(this, lambda **_: given, inputs, False)
    return loss, this._metrics["eval"]


def test_pairs_equal_trl():
    samples, policy = rankings([[1, 0], [0, 1], [1, 0], [0, 2]]), outputs(4)
    batch, reference = batch_and_reference(samples)
    found = PreferenceLoss(BETA)(policy, batch)
    mine, theirs = sequence_log_probs(samples, policy), sequence_log_probs(samples, reference)
    better = [0, 1, 0, 1]
    chosen, rejected = (torch.stack([row[i ^ flip] for row, i in zip(mine, better, strict=True)]) for flip in (0, 1))
    others = [torch.stack([row[i ^ flip] for row, i in zip(theirs, better, strict=True)]).detach() for flip in (0, 1)]
    loss, metrics = trl_loss(chosen, rejected, *others)
    torch.testing.assert_close(found.sum / found.count, loss, rtol=1e-6, atol=1e-9)
    assert (found.metrics["margin"] / 4).item() == pytest.approx(metrics["rewards/margins"][0], rel=1e-6)
    assert (found.metrics["accuracy"] / 4).item() == metrics["rewards/accuracies"][0]
    wrt = (policy.hidden, policy.weight)
    for ours, exact in zip(torch.autograd.grad(found.sum / 4, wrt), torch.autograd.grad(loss, wrt), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-6, atol=1e-9)


def test_the_loss_of_the_reference_itself_is_log_2():
    samples = rankings(COMPLETIONS)
    batch, reference = batch_and_reference(samples)
    found = PreferenceLoss(BETA)(reference, batch)
    assert (found.sum / found.count).item() == pytest.approx(math.log(2), rel=1e-12)
    assert found.metrics["margin"] == 0


def test_only_learned_tokens_inside_a_conversation_are_targets():
    samples = rankings([[1, 0]])
    batch = Preferences(BETA).batch(samples)
    first_end = int(samples.streams["marks"][0].nonzero()[0][0])
    assert batch.targets[0, first_end] == IGNORE, "the next conversation is not predicted"
    assert batch.positions[0, first_end + 1] == 0
    for i in range(T):
        if batch.targets[0, i] != IGNORE:
            assert batch.targets[0, i] == samples.tokens[0, i + 1]
            assert samples.streams["learned"][0, i + 1] == 1
    assert (batch.targets != IGNORE).sum() == samples.streams["learned"].sum()
    assert batch.extra["slots"][0, : first_end + 2].tolist() == [0] * (first_end + 1) + [1]


def test_two_prompts_of_a_row_count_as_in_rows_of_their_own():
    """As data.sampling = "packed" has them: no pair crosses prompts."""
    apart, policy = rankings([[1, 0], [0, 2]]), outputs(2)
    lengths = [int((row != PADDING).sum()) for row in apart.segment_ids]
    cut, end = lengths[0], sum(lengths)

    def joined(values, blank):
        row = np.full((1, T + 1), blank)
        row[0, :cut], row[0, cut:end] = values[0, :cut], values[1, : lengths[1]]
        return row

    ids = joined(apart.segment_ids, PADDING)
    ids[0, cut:end] = 1
    streams = {name: joined(values, 0) for name, values in apart.streams.items()}
    together = Samples(joined(apart.tokens, 0), ids, streams)
    hidden = torch.cat((policy.hidden[0, :cut], policy.hidden[1, : T - cut])).unsqueeze(0)
    objective, found = Preferences(BETA), []
    for samples, states in ((apart, policy.hidden), (together, hidden)):
        batch = objective.batch(samples)
        complete = objective.with_reference(batch, torch.zeros(batch.targets.shape, dtype=torch.float64))
        found.append(PreferenceLoss(BETA)(VocabularyOutputs(states, policy.weight, policy.shard), complete))
    assert found[0].count == found[1].count == 2
    torch.testing.assert_close(found[0].sum, found[1].sum, rtol=1e-12, atol=1e-12)


def test_rows_outside_the_mask_do_not_count():
    samples, policy = rankings(COMPLETIONS), outputs(len(COMPLETIONS))
    batch, _ = batch_and_reference(samples)
    found = PreferenceLoss(BETA)(policy, batch.without_rows([1]))
    parts = [
        PreferenceLoss(BETA)(VocabularyOutputs(h, policy.weight, policy.shard), part)
        for h, part in zip(policy.hidden.split(1), batch.split(1), strict=True)
    ]
    assert found.count == 2
    torch.testing.assert_close(found.sum, parts[0].sum + parts[4].sum, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, -1.0, float("inf")])
def test_beta_must_be_a_number_above_0(beta):
    with pytest.raises(ConfigError, match=r"objective\.beta = .* is invalid"):
        DPOConfig(beta=beta)


def test_z_loss_is_refused():
    with pytest.raises(ConfigError, match=r"train\.z_loss = 0\.001 is invalid"):
        DPOConfig().build(z_loss=1e-3)
