"""Sampling rules, against values computed by hand and against transformers."""

import math
from typing import Any

import pytest
import torch

from gpt.errors import ConfigError
from gpt.inference.sampling import choose, kept_probabilities, penalised, seen_tokens
from gpt.inference.sampling_settings import GREEDY, Sampling


@pytest.mark.parametrize(
    "settings", [(-1.0,), (math.nan,), (1.0, 0), (1.0, None, 0.0), (1.0, None, 1.5), (1.0, None, None, 0.0)]
)
def test_impossible_sampling_is_refused(settings: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        Sampling(*settings)


def frequencies(logits: list[float], sampling: Sampling) -> list[float]:
    """Return how often each token is chosen for uniform numbers spread evenly over [0, 1)."""
    n = 4000
    uniform = (torch.arange(n) + 0.5) / n
    chosen = choose(torch.tensor([logits]).expand(n, -1), sampling, uniform)
    return (torch.bincount(chosen, minlength=len(logits)) / n).tolist()


def test_filters_keep_the_probabilities_computed_by_hand() -> None:
    logits = [math.log(p) for p in (0.1, 0.4, 0.2, 0.3)]
    assert frequencies(logits, Sampling(1.0)) == pytest.approx([0.1, 0.4, 0.2, 0.3], abs=1e-3)
    assert frequencies(logits, Sampling(1.0, top_k=2)) == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=1e-3)
    # 0.4 + 0.3 reaches 0.65, so the third token is out. It does not reach 0.75, so the third token is in.
    assert frequencies(logits, Sampling(1.0, top_p=0.65)) == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=1e-3)
    assert frequencies(logits, Sampling(1.0, top_p=0.75)) == pytest.approx([0, 4 / 9, 2 / 9, 3 / 9], abs=1e-3)
    assert frequencies(logits, Sampling(1.0, top_p=0.01)) == [0, 1, 0, 0]
    # top_k comes first: of the two tokens left, 4/7 alone reaches 0.5
    assert frequencies(logits, Sampling(1.0, top_k=2, top_p=0.5)) == [0, 1, 0, 0]
    squared = [p * p / 0.30 for p in (0.1, 0.4, 0.2, 0.3)]
    assert frequencies(logits, Sampling(0.5)) == pytest.approx(squared, abs=1e-3)
    assert choose(torch.tensor([logits]), GREEDY).tolist() == [1]


@pytest.mark.parametrize("sampling", [Sampling(1.0, top_k=20), Sampling(1.0, top_p=0.87), Sampling(1.0)])
def test_rounding_does_not_change_the_choice_between_tokens_of_equal_probability(sampling: Sampling) -> None:
    """Noise of 1e-6, as from the sums of another layout, reorders equal tokens but moves no interval by more."""
    generator = torch.Generator().manual_seed(5)
    rows, v = 2000, 40
    logits = torch.zeros(rows, v).masked_fill_(torch.arange(v) >= 20, -2.0)
    uniform = torch.rand(rows, generator=generator)
    chosen = choose(logits, sampling, uniform)
    noisy = choose(logits + 1e-6 * torch.randn(rows, v, generator=generator), sampling, uniform)
    assert (chosen != noisy).sum() <= 2


@pytest.mark.parametrize("sampling", [Sampling(1.0, top_k=20), Sampling(0.8, top_p=0.9), Sampling(1.3)])
def test_the_draw_counts_the_intervals_up_to_its_number(sampling: Sampling) -> None:
    """By the definition: the tokens whose cumulative probability is at most the number come before the chosen one."""
    generator = torch.Generator().manual_seed(6)
    rows, v = 500, 3001
    logits = 3.0 * torch.randn(rows, v, generator=generator)
    uniform = torch.rand(rows, generator=generator)
    cumulative = kept_probabilities(logits / sampling.temperature, sampling).cumsum(-1)
    expected = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(-1)
    assert torch.equal(choose(logits, sampling, uniform), expected)


def test_the_ends_of_the_draw_give_tokens_of_positive_probability() -> None:
    """0, and numbers that rounding makes 1; of tokens without a chance at both ends and in between."""
    logits = torch.full((2, 7), -math.inf)
    logits[:, [2, 4]] = torch.tensor([0.3, 0.1])
    for rule in (Sampling(1.0), Sampling(1.0, top_k=3), Sampling(1.0, top_p=0.99)):
        assert choose(logits, rule, torch.tensor([0.0, 1.0])).tolist() == [2, 4]
    equal = torch.zeros(1, 5)
    assert choose(equal, Sampling(1.0), torch.tensor([1.0 - 2.0**-53])).tolist() == [4]
    assert choose(equal, GREEDY).tolist() == [0], "of equal tokens the first"
    assert int(choose(equal * math.nan, Sampling(1.0), torch.tensor([0.5]))) in range(5), "the caller says so"


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="needs the extra 'hf'")


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(0.7),
        Sampling(1.0, top_k=5),
        Sampling(1.6, top_p=0.3),
        Sampling(1.0, top_p=0.9),
        Sampling(0.5, top_k=12, top_p=0.8),
        Sampling(1.3, top_k=20, top_p=0.95, repetition_penalty=1.3),
        Sampling(1.0, top_k=500, repetition_penalty=0.8),
    ],
)
def test_filters_equal_those_of_transformers(transformers: Any, sampling: Sampling) -> None:
    """Applied in the same order: penalty, temperature, top_k, top_p."""
    generator = torch.Generator().manual_seed(7)
    logits = 3.0 * torch.randn(6, 40, generator=generator)
    text = torch.randint(40, (6, 9), generator=generator)
    seen = seen_tokens(text.tolist(), vocab_size=40, device=logits.device)
    rules = [
        transformers.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty),
        transformers.TemperatureLogitsWarper(sampling.temperature),
    ]
    if sampling.top_k is not None:
        rules.append(transformers.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None:
        rules.append(transformers.TopPLogitsWarper(sampling.top_p))
    expected = logits
    for rule in rules:
        expected = rule(text, expected)
    n = 4000
    uniform = (torch.arange(n) + 0.5) / n
    for row in range(6):
        chosen = choose(logits[[row]].expand(n, -1), sampling, uniform, seen=seen[[row]])
        frequencies = torch.bincount(chosen, minlength=40) / n
        torch.testing.assert_close(frequencies, expected[row].softmax(-1), rtol=0, atol=2e-3)


def test_the_repetition_penalty_equals_that_of_transformers(transformers: Any) -> None:
    generator = torch.Generator().manual_seed(7)
    logits = 3.0 * torch.randn(5, 30, generator=generator)
    text = torch.randint(30, (5, 20), generator=generator)
    seen = seen_tokens(text.tolist(), vocab_size=30, device=logits.device)
    for penalty in (0.5, 1.0, 1.7):
        expected = transformers.RepetitionPenaltyLogitsProcessor(penalty)(text, logits)
        assert torch.equal(penalised(logits, seen, penalty), expected)
