"""Losses in sliding windows, against one forward pass per token in float64; validation loss and entropy."""

import copy
import math
import random
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from gpt.evaluation.perplexity import (
    TextLoss,
    TokenRows,
    count_targets,
    perplexity,
    sliding_windows,
    text_loss,
    validation_loss,
)
from gpt.evaluation.text_windows import TextChunk
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise

N_CTX = 12
CONFIG = ModelConfig(vocab_size=300, n_ctx=N_CTX, n_layers=1, d_model=32, n_heads=4, init_std=0.3)


@pytest.fixture(scope="module")
def model() -> GPT:
    model = GPT(CONFIG)
    initialise(model, CONFIG, seed=5)
    return model.requires_grad_(False)


@pytest.mark.parametrize("stride", [1, 5, 6, N_CTX])
@pytest.mark.parametrize("n_tokens", [1, 4, N_CTX, N_CTX + 1, 40])
def test_each_token_is_predicted_once_in_its_own_window(model: GPT, n_tokens: int, stride: int) -> None:
    """Compare with one float64 forward pass for every token, over the context that the rule gives it."""
    rng = random.Random(n_tokens)
    tokens = [rng.randrange(1, 300) for _ in range(n_tokens)]
    cuts = sorted(rng.choices(range(n_tokens + 1), k=3))
    chunks = [tokens[a:b] for a, b in zip([0, *cuts], [*cuts, n_tokens], strict=True)]
    exact = copy.deepcopy(model).double()
    expected = 0.0
    whole = [0, *tokens]
    for position in range(1, n_tokens + 1):
        start = max(0, math.ceil((position - N_CTX) / stride)) * stride
        assert start == 0 or N_CTX - stride + 1 <= position - start <= N_CTX
        logits = exact(torch.tensor([whole[start:position]]))[0, -1]
        expected -= float(logits.log_softmax(-1)[whole[position]])
    documents = [[TextChunk(chunk, 1, 2) for chunk in chunks]]
    loss = text_loss(model, documents, first_id=0, window=N_CTX, stride=stride, batch_tokens=100)
    assert loss == TextLoss(pytest.approx(expected, rel=1e-5), n_tokens, 4, 8)
    assert loss.nats_per_token == pytest.approx(expected / n_tokens, rel=1e-5)
    assert loss.nats_per_word == pytest.approx(expected / 4, rel=1e-5)
    assert loss.bits_per_byte == pytest.approx(expected / 8 / math.log(2), rel=1e-5)


def test_the_end_of_a_document_does_not_affect_earlier_tokens() -> None:
    tokens = list(range(1, 60))
    whole = list(sliding_windows([tokens], first_id=0, window=N_CTX, stride=5))
    for n in range(1, 60):
        part = list(sliding_windows([tokens[:n]], first_id=0, window=N_CTX, stride=5))
        assert part[:-1] == whole[: len(part) - 1]
        last = whole[len(part) - 1].tokens
        assert part[-1].tokens == last[: len(part[-1].tokens)]
        assert sum(request.n_scored for request in part) == n


def test_documents_are_read_while_others_are_scored(model: GPT) -> None:
    """The corpus is never whole in memory: at most 64 documents are read before some are scored."""
    ahead = max_ahead = 0

    def documents() -> Iterator[list[TextChunk]]:
        nonlocal ahead, max_ahead
        for _ in range(1000):
            ahead += 1
            max_ahead = max(max_ahead, ahead)
            yield [TextChunk([1, 2, 3], 1, 1)]

    def scored(*_: object) -> None:
        nonlocal ahead
        ahead = 0

    assert model.norm is not None
    hook = model.norm.register_forward_hook(scored)
    loss = text_loss(model, documents(), first_id=0, window=N_CTX, stride=6, batch_tokens=60)
    hook.remove()
    assert (loss.tokens, loss.words) == (3000, 1000)
    assert max_ahead <= 64


def test_a_mean_over_nothing_and_an_overflow_are_none() -> None:
    nothing = TextLoss() + TextLoss(nats=7.0, tokens=1)
    assert (nothing.nats_per_token, nothing.nats_per_word, nothing.bits_per_byte) == (7.0, None, None)
    assert perplexity(nothing.nats_per_word) is None
    assert perplexity(701.0) is None
    assert perplexity(math.log(5)) == pytest.approx(5)


def test_validation_loss_and_entropy_equal_their_definitions(model: GPT) -> None:
    batches = [TokenRows(np.random.default_rng(i).integers(0, 300, size=(3 - i, 11))) for i in range(3)]
    loss = validation_loss(model, iter(batches))
    rows = torch.from_numpy(np.concatenate([batch.tokens for batch in batches]))
    log_probs = model(rows[:, :-1]).log_softmax(-1).gather(2, rows[:, 1:, None])
    assert loss.tokens == 6 * 10
    assert loss.nats_per_token == pytest.approx(-float(log_probs.mean()), rel=1e-5)
    assert loss.perplexity == pytest.approx(math.exp(loss.nats_per_token))
    counts = Counter(rows[:, 1:].flatten().tolist())
    entropy = -sum(n / 60 * math.log(n / 60) for n in counts.values())
    assert count_targets(iter(batches), 300).entropy_nats == pytest.approx(entropy)


def test_only_counted_targets_have_a_loss(model: GPT) -> None:
    draw = np.random.default_rng(0)
    rows = [TokenRows(draw.integers(0, 300, size=(2, 11)), draw.random((2, 10)) < share) for share in (0.4, 0.0, 1.0)]
    loss = validation_loss(model, iter(rows))
    total = n = 0.0
    for tokens, counted in rows:
        assert counted is not None
        both = torch.from_numpy(tokens)
        log_probs = model(both[:, :-1]).log_softmax(-1).gather(2, both[:, 1:, None])[..., 0]
        total, n = total - float(log_probs[torch.from_numpy(counted)].sum()), n + counted.sum()
    assert loss.tokens == n
    assert loss.nats_per_token == pytest.approx(total / n, rel=1e-5)
    assert count_targets(rows, 300).counts.sum() == n


def test_entropy_of_uniform_and_of_constant_tokens() -> None:
    assert count_targets([TokenRows(np.arange(65)[None])], 65).entropy_nats == pytest.approx(math.log(64))
    assert count_targets([TokenRows(np.full((2, 9), 3))], 65).entropy_nats == 0.0
