"""Prompts with common prefixes get the tokens that each gets alone, in packed rows and in padded batches."""

import random
from typing import Any

import pytest

from gpt.evaluation.batching import shared_prefix
from gpt.evaluation.batching.shared_prefix import PackedRow, generate_sharing
from gpt.inference.generation import generate
from gpt.inference.kv_cache import KeyValueCache
from gpt.inference.model import LocalModel
from gpt.inference.sampling_settings import GREEDY, Sampling
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise

GPT3 = ModelConfig(vocab_size=61, n_ctx=120, n_layers=2, d_model=32, n_heads=4, init_std=0.3)
LLAMA = ModelConfig(
    vocab_size=61,
    n_ctx=120,
    n_layers=2,
    d_model=32,
    n_heads=4,
    n_kv_heads=2,
    positions="rope",
    norm="rmsnorm",
    activation="swiglu",
    bias=False,
    init_std=0.3,
)


def prompts() -> list[list[int]]:
    """Forty prompts with the same 60 tokens, one of them three times, the 60 tokens alone, and two that share none."""
    rng = random.Random(5)
    examples = [rng.randrange(61) for _ in range(60)]
    found = [examples + [rng.randrange(61) for _ in range(rng.randint(1, 12))] for _ in range(40)]
    found += [found[3], examples, found[3], [7], [9, 8]]
    rng.shuffle(found)
    return found


@pytest.mark.parametrize("config", [GPT3, LLAMA], ids=["gpt3", "llama"])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.3, top_k=40, repetition_penalty=1.2)])
@pytest.mark.parametrize(("batch_tokens", "way"), [(100, PackedRow), (2000, PackedRow), (2000, KeyValueCache)])
def test_each_prompt_gets_what_it_gets_alone(
    config: ModelConfig, sampling: Sampling, batch_tokens: int, way: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy and sampled, with stop ids that drop some prompts from the row.

    100 batch tokens: the prompts of one pass are generated in several parts. KeyValueCache: the way of long answers,
    which unpacks the row.
    """
    model = GPT(config)
    initialise(model, config, seed=4)
    model.requires_grad_(False)
    sizes: list[int] = []  # of the packed rows, or of the batches that they are unpacked into
    name = "decode_step" if way is PackedRow else "unpack"
    plain = getattr(way, name)

    def counted(self: Any, rows: Any, *others: Any) -> Any:
        sizes.append(len(rows))
        return plain(self, rows, *others)

    monkeypatch.setattr(way, name, counted)
    monkeypatch.setattr(shared_prefix, "MAX_PACKED_NEW_TOKENS", 64 if way is PackedRow else 8)
    finished: list[int] = []
    settings: dict[str, Any] = {"n_ctx": 120, "max_new_tokens": 9, "sampling": sampling, "stop_ids": [3, 17, 20]}
    results = generate_sharing(
        LocalModel(model), prompts(), batch_tokens=batch_tokens, seed=11, progress=finished.append, **settings
    )
    assert sum(finished) == len(prompts())
    assert (max(sizes) > 20) == (batch_tokens == 2000)
    assert max(sizes) > 5
    for number, (prompt, result) in enumerate(zip(prompts(), results, strict=True)):
        (alone,) = generate(model, [prompt], seed=11 + number, **settings)
        assert result.tokens == alone.tokens
        assert result.stopped == alone.stopped
        assert result.log_probs == pytest.approx(alone.log_probs, abs=1e-4)
    assert len({len(result.tokens) for result in results}) > 3


def test_watch_ends_the_prompt_that_it_names() -> None:
    model = GPT(GPT3)
    initialise(model, GPT3, seed=4)
    model.requires_grad_(False)
    seen: dict[int, int] = {}

    def watch(number: int, tokens: list[int]) -> bool:
        seen[number] = len(tokens)
        return len(tokens) == 1 + number % 4

    seen_at_progress: list[int] = []
    results = generate_sharing(
        LocalModel(model),
        prompts(),
        n_ctx=120,
        max_new_tokens=9,
        batch_tokens=200,
        watch=watch,
        progress=lambda _: seen_at_progress.append(len(seen)),
    )
    assert seen_at_progress[0] < len(results), "progress is reported on the way"
    assert [len(result.tokens) for result in results] == [1 + i % 4 for i in range(len(results))]
    assert seen == {i: 1 + i % 4 for i in range(len(results))}
