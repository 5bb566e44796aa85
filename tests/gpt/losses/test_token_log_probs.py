"""Per-token log-probabilities against torch's log_softmax in float64: values, gradients, entropy, vocabulary shards."""

import threading

import pytest
import torch

import gpt.losses.token_log_probs
from gpt.losses.base import TokenValues, VocabShard, VocabularyOutputs, whole_vocabulary
from gpt.losses.batch import Batch
from gpt.losses.marks import IGNORE
from gpt.losses.next_token import loss_for
from gpt.losses.token_log_probs import log_probs_and_entropy, token_log_probs

VOCAB = 37


def inputs(*, dtype=torch.float64):
    """Hidden states (3, 50, 16), a head of 48 rows of which 11 are padding, targets, and a weight for each token."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 50, 16, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(48, 16, generator=generator, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, VOCAB, (3, 50), generator=generator)
    targets[0, :7] = IGNORE
    return hidden, weight, targets, torch.randn(3, 50, generator=generator, dtype=torch.float64)


def reference(hidden, weight, targets, *, temperature=1.0):
    """Log-probabilities and entropies (b, t)."""
    log_p = ((hidden @ weight.T)[..., :VOCAB] / temperature).log_softmax(-1)
    counted = targets != IGNORE
    chosen = log_p.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return chosen.where(counted, 0.0), -(log_p.exp() * log_p).sum(-1).where(counted, 0.0)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_values_gradients_and_entropy_equal_torch(monkeypatch, chunk, temperature):
    monkeypatch.setattr(gpt.losses.token_log_probs, "chunk_tokens", lambda rows, device: chunk)
    hidden, weight, targets, weights = inputs()
    outputs = VocabularyOutputs(hidden, weight, whole_vocabulary(VOCAB))
    found, entropy = log_probs_and_entropy(outputs, targets, temperature=temperature)
    expected, expected_entropy = reference(hidden, weight, targets, temperature=temperature)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(entropy, expected_entropy, rtol=1e-12, atol=1e-12)
    assert not entropy.requires_grad
    assert torch.equal(token_log_probs(outputs, targets, temperature=temperature), found)
    ours = torch.autograd.grad((found * weights).sum(), (hidden, weight))
    theirs = torch.autograd.grad((expected * weights).sum(), (hidden, weight))
    for mine, exact in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-10, atol=1e-12)
    assert not ours[1][VOCAB:].any(), "padding rows learn nothing"


def test_gradients_of_second_use_and_of_one_side_alone():
    """Zero-bubble pipelines take gradients of inputs first and of weights later, from one retained graph."""
    hidden, weight, targets, weights = inputs()
    found = token_log_probs(VocabularyOutputs(hidden, weight, whole_vocabulary(VOCAB)), targets)
    (first,) = torch.autograd.grad(found, hidden, weights, retain_graph=True)
    (second,) = torch.autograd.grad(found, weight, 2 * weights)
    exact = torch.autograd.grad(reference(hidden, weight, targets)[0], (hidden, weight), weights)
    torch.testing.assert_close(first, exact[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(second, 2 * exact[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shift", [0.0, 300.0])
def test_vocabulary_shards_equal_the_whole(shift):
    """Three holders of 16 rows, the last partly padding, in threads that meet at a barrier as ranks would."""
    hidden, weight, targets, weights = inputs()
    with torch.no_grad():
        hidden[..., 0] = 1.0
        weight[:16, 0] += shift  # one holder's logits far above the others'
    meeting, box, results = threading.Barrier(3), [None] * 3, [None] * 3

    def reduced(rank, x, op):
        box[rank] = x
        meeting.wait()
        y = op(torch.stack([*box]))
        meeting.wait()
        return y

    def work(rank):
        shard = VocabShard(
            start=16 * rank,
            vocab_size=VOCAB,
            max_rows=16,
            reduce_sum=lambda x: reduced(rank, x, lambda s: s.sum(0)),
            reduce_max=lambda x: reduced(rank, x, lambda s: s.max(0).values),
        )
        h = hidden.detach().clone().requires_grad_()
        w = weight.detach()[16 * rank : 16 * rank + 16].clone().requires_grad_()
        found, entropy = log_probs_and_entropy(VocabularyOutputs(h, w, shard), targets)
        results[rank] = (found.detach(), entropy, *torch.autograd.grad(found, (h, w), weights))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    [thread.start() for thread in threads]
    [thread.join(timeout=60) for thread in threads]
    expected, expected_entropy = reference(hidden, weight, targets)
    exact = torch.autograd.grad(expected, (hidden, weight), weights)
    for found, entropy, _, _ in results:
        torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-11 * (1 + shift))
        torch.testing.assert_close(entropy, expected_entropy.detach(), rtol=1e-12, atol=1e-11 * (1 + shift))
    torch.testing.assert_close(sum(r[2] for r in results), exact[0], rtol=1e-10, atol=1e-11 * (1 + shift))
    torch.testing.assert_close(torch.cat([r[3] for r in results]), exact[1], rtol=1e-10, atol=1e-11)


def test_bf16_is_close_to_float64():
    hidden, weight, targets, weights = inputs(dtype=torch.bfloat16)
    found, entropy = log_probs_and_entropy(VocabularyOutputs(hidden, weight, whole_vocabulary(VOCAB)), targets)
    assert found.dtype == entropy.dtype == torch.float32
    exact = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    expected, expected_entropy = reference(*exact, targets)
    torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.05)
    torch.testing.assert_close(entropy.double(), expected_entropy, rtol=0.02, atol=0.05)
    found.backward(weights.float())
    expected.backward(weights)
    for ours, theirs in zip((hidden, weight), exact, strict=True):
        assert ours.grad.dtype == torch.bfloat16
        assert (ours.grad - theirs.grad).norm() < 0.02 * theirs.grad.norm()


def test_ignored_targets_have_no_value_and_no_gradient():
    hidden, weight, targets, _ = inputs()
    nothing = torch.full_like(targets, IGNORE)
    found, entropy = log_probs_and_entropy(VocabularyOutputs(hidden, weight, whole_vocabulary(VOCAB)), nothing)
    found.sum().backward()
    assert not found.any()
    assert not entropy.any()
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_the_language_model_loss_has_these_values_and_obeys_the_mask():
    hidden, weight, targets, _ = inputs()
    mask = torch.ones_like(targets, dtype=torch.bool)
    mask[1] = False
    loss, outputs = loss_for(compile=False), VocabularyOutputs(hidden, weight, whole_vocabulary(VOCAB))
    assert isinstance(loss, TokenValues)
    values = loss.values(outputs, Batch(targets, targets, loss_mask=mask))
    torch.testing.assert_close(values, reference(hidden, weight, targets.masked_fill(~mask, IGNORE))[0])
    total = loss(outputs, Batch(targets, targets, loss_mask=mask)).sum
    torch.testing.assert_close(total, -values.sum())


@pytest.mark.parametrize("counted", [0, 5])
def test_a_cpu_computes_logits_of_counted_targets_alone(monkeypatch, counted):
    hidden, weight, targets, weights = inputs()
    index = torch.arange(targets.numel()).view_as(targets)
    targets = targets.masked_fill((index < 40) | (index >= 40 + counted), IGNORE)
    rows, original = [], gpt.losses.token_log_probs._logits
    monkeypatch.setattr(
        gpt.losses.token_log_probs, "_logits", lambda h, *more: (rows.append(len(h)), original(h, *more))[1]
    )
    found = token_log_probs(VocabularyOutputs(hidden, weight, whole_vocabulary(VOCAB)), targets)
    ours = torch.autograd.grad((found * weights).sum(), (hidden, weight))
    assert rows == [max(counted, 1)] * 2, "forward and backward"
    expected, _ = reference(hidden, weight, targets)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for mine, exact in zip(ours, torch.autograd.grad((expected * weights).sum(), (hidden, weight)), strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-10, atol=1e-12)
