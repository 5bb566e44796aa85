"""Prompts with beginnings in common get what each gets alone, however they are laid out."""

import random
from typing import Any

import pytest

from gpt.errors import ConfigError
from gpt.evaluation.batching import shared_prefix as shared_prompts
from gpt.evaluation.batching.shared_prefix import PackedRow, generate_sharing
from gpt.evaluation.few_shot.answer_settings import read_settings
from gpt.inference.generation import generate
from gpt.inference.kv_cache import KeyValueCache
from gpt.inference.model import LocalModel
from gpt.inference.sampling import GREEDY, Sampling
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
    """Forty questions under the same 60 tokens, one twice more, the 60 tokens alone, and two that share none."""
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
    """Greedy or drawn, with stop ids that drop some from the row; a hundred tokens at a time too, so that one pass is
    continued in several parts; and as answers are that may be long."""
    model = GPT(config)
    initialise(model, config, seed=4)
    model.requires_grad_(False)
    asked: list[int] = []
    name = "read_token" if way is PackedRow else "spread"  # into a row for each
    plain = getattr(way, name)

    def counted(self: Any, rows: Any, *more: Any) -> Any:
        asked.append(len(rows))
        return plain(self, rows, *more)

    monkeypatch.setattr(way, name, counted)
    monkeypatch.setattr(shared_prompts, "MAX_PACKED_NEW_TOKENS", 64 if way is PackedRow else 8)
    told: list[int] = []
    settings: dict[str, Any] = {"n_ctx": 120, "max_new_tokens": 9, "sampling": sampling, "stop_ids": [3, 17, 20]}
    results = generate_sharing(
        LocalModel(model), prompts(), batch_tokens=batch_tokens, seed=11, progress=told.append, **settings
    )
    assert sum(told) == len(prompts())
    assert (max(asked) > 20) == (batch_tokens == 2000)
    assert max(asked) > 5
    for number, (prompt, result) in enumerate(zip(prompts(), results, strict=True)):
        (alone,) = generate(model, [prompt], seed=11 + number, **settings)
        assert result.tokens == alone.tokens
        assert result.stopped == alone.stopped
        assert result.log_probs == pytest.approx(alone.log_probs, abs=1e-4)
    assert len({len(result.tokens) for result in results}) > 3


def test_watching_ends_the_prompt_that_is_named() -> None:
    model = GPT(GPT3)
    initialise(model, GPT3, seed=4)
    model.requires_grad_(False)
    seen: dict[int, int] = {}

    def watch(number: int, tokens: list[int]) -> bool:
        seen[number] = len(tokens)
        return len(tokens) == 1 + number % 4

    begun: list[int] = []
    results = generate_sharing(
        LocalModel(model),
        prompts(),
        n_ctx=120,
        max_new_tokens=9,
        batch_tokens=200,
        watch=watch,
        progress=lambda _: begun.append(len(seen)),
    )
    assert begun[0] < len(results), "progress is told on the way"
    assert [len(result.tokens) for result in results] == [1 + i % 4 for i in range(len(results))]
    assert seen == {i: 1 + i % 4 for i in range(len(results))}


def test_settings_of_a_task_are_read_as_the_harness_reads_them() -> None:
    settings = read_settings({"until": "\n", "max_new_tokens": 7, "do_sample": False, "temperature": 0.8}, most=256)
    assert (settings.until, settings.new_tokens, settings.sampling) == (("\n",), 7, GREEDY)
    settings = read_settings({"until": ["a", ""], "temperature": 0.5, "top_p": 0.9, "top_k": 0}, most=256)
    assert (settings.until, settings.new_tokens) == (("a",), 256)
    assert settings.sampling == Sampling(0.5, None, 0.9)
    assert read_settings({"do_sample": True, "top_k": 5, "num_beams": 1}, most=9).sampling == Sampling(1.0, 5)
    assert read_settings({"repetition_penalty": 1.5}, most=9).sampling == Sampling(repetition_penalty=1.5)
    assert read_settings({"max_tokens": 5, "max_gen_toks": 6}, most=9).new_tokens == 6
    with pytest.raises(ConfigError, match="num_beams = 4"):
        read_settings({"num_beams": 4}, most=9)
