"""Scores with common prefixes read once equal those of one forward pass per sequence."""

import random

import pytest
import torch

from gpt.evaluation.batching.scoring import Request, plan_scores, score
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise

ROPE = {"positions": "rope", "norm": "rmsnorm", "activation": "swiglu", "bias": False, "n_kv_heads": 2}


@pytest.mark.parametrize("family", [{}, ROPE], ids=["gpt3", "llama"])
def test_scores_are_the_same_with_and_without_sharing(family: dict[str, object]) -> None:
    """Equal to 1e-4 nats, since a longer row sums in another order."""
    config = ModelConfig(vocab_size=90, n_ctx=80, n_layers=2, d_model=32, n_heads=4, init_std=0.3, **family)  # type: ignore[arg-type]
    model = GPT(config)
    initialise(model, config, seed=8)
    model.requires_grad_(False)
    rng = random.Random(3)
    texts: list[tuple[int, ...]] = []
    for _ in range(30):  # most continue a prefix of another
        prefix = rng.choice(texts)[: rng.randint(0, 25)] if texts and rng.random() < 0.7 else ()
        texts.append((*prefix, *(rng.randrange(90) for _ in range(rng.randint(2, 25)))))
    examples = tuple(rng.randrange(90) for _ in range(50))
    texts += [(*examples, *(rng.randrange(90) for _ in range(rng.randint(1, 30)))) for _ in range(30)]
    texts += [(*text[:-1], rng.randrange(90)) for text in texts[::3]]  # another last token after the same text
    requests = [Request(list(text), rng.randint(0, len(text) - 1)) for text in texts]
    plan, _ = plan_scores(requests, batch_tokens=70)
    assert plan.cache_length > 0
    assert plan.tokens < sum(len(r.tokens) for r in requests) * 0.7
    finished: list[int] = []
    shared = score(model, requests, batch_tokens=70, progress=finished.append)
    unshared = score(model, requests, batch_tokens=70, sharing=False)
    assert sum(finished) == len(requests)
    for request, a, b in zip(requests, shared, unshared, strict=True):
        assert a.greedy == b.greedy
        assert a.log_probs == pytest.approx(b.log_probs, abs=1e-4)
        if request.n_scored:
            log_probs = model(torch.tensor([request.tokens[:-1]]))[0].log_softmax(-1)
            first = len(request.tokens) - request.n_scored
            plain = [float(log_probs[i - 1, request.tokens[i]]) for i in range(first, len(request.tokens))]
            assert a.log_probs == pytest.approx(plain, abs=1e-4)


def test_batched_scores_equal_those_of_one_sequence_at_a_time() -> None:
    config = ModelConfig(vocab_size=400, n_ctx=48, n_layers=2, d_model=32, n_heads=4, init_std=0.3)
    model = GPT(config)
    initialise(model, config, seed=8)
    model.requires_grad_(False)
    rng = random.Random(1)
    requests = []
    for _ in range(25):
        n = rng.randint(2, 49)
        requests.append(Request([rng.randrange(400) for _ in range(n)], rng.randint(0, n - 1)))
    finished: list[int] = []
    results = score(model, requests, batch_tokens=130, progress=finished.append)
    assert sum(finished) == 25
    assert len(finished) > 3, "several batches"
    for request, result in zip(requests, results, strict=True):
        log_probs, greedy = plain_score(model, request.tokens, request.n_scored)
        assert result.log_probs == pytest.approx(log_probs, abs=1e-4)
        assert result.greedy == greedy


def plain_score(model: GPT, tokens: list[int], n_scored: int) -> tuple[list[float], list[bool]]:
    """Score the last tokens by one plain forward pass."""
    if not n_scored:
        return [], []
    scores = model(torch.tensor([tokens[:-1]]))[0].log_softmax(-1)
    positions = range(len(tokens) - n_scored, len(tokens))
    log_probs = [float(scores[position - 1, tokens[position]]) for position in positions]
    return log_probs, [int(scores[position - 1].argmax()) == tokens[position] for position in positions]
