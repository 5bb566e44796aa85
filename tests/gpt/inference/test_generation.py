"""Generation equals recomputing every prefix, and a batch equals its prompts one at a time."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from gpt.errors import ConfigError
from gpt.inference.generation import generate, read_prompts
from gpt.inference.model import LocalModel
from gpt.inference.sampling_settings import GREEDY, Sampling
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise

GPT3 = ModelConfig(vocab_size=61, n_ctx=40, n_layers=3, d_model=32, n_heads=4, init_std=0.3)
LLAMA = ModelConfig(
    vocab_size=61,
    n_ctx=40,
    n_layers=3,
    d_model=32,
    n_heads=4,
    n_kv_heads=2,
    d_ff=48,
    positions="rope",
    norm="rmsnorm",
    activation="swiglu",
    bias=False,
    tied=False,
    init_std=0.3,
)
PROMPTS = [[5, 3, 60], [7], list(range(20)), [1, 2, 3, 4, 5, 6, 7, 8], [9]]
WARM = Sampling(temperature=1.3, top_k=40, top_p=0.95)
VARIED = Sampling(temperature=1.1, repetition_penalty=1.4)


@pytest.fixture(scope="module", params=[GPT3, LLAMA], ids=["gpt3", "llama"])
def model(request: pytest.FixtureRequest) -> GPT:
    return random_model(request.param)


def random_model(config: ModelConfig) -> GPT:
    model = GPT(config)
    initialise(model, config, seed=4)
    return model.requires_grad_(False)


def recompute(model: GPT, prompt: list[int], n: int) -> tuple[list[int], list[float]]:
    """Decode greedily without a cache: run the whole text through the model for each new token."""
    tokens, log_probs = list(prompt), []
    for _ in range(n):
        scores = model(torch.tensor([tokens]))[0, -1].log_softmax(-1)
        tokens.append(int(scores.argmax()))
        log_probs.append(float(scores.max()))
    return tokens[len(prompt) :], log_probs


def test_greedy_equals_recomputing_every_prefix(model: GPT) -> None:
    """Same tokens, and log-probabilities to 1e-4 nats, since a cache and a mask sum in another order in fp32."""
    results = generate(model, PROMPTS, n_ctx=40, max_new_tokens=20)
    for prompt, result in zip(PROMPTS, results, strict=True):
        tokens, log_probs = recompute(model, prompt, 20)
        assert result.tokens == tokens
        assert result.log_probs == pytest.approx(log_probs, abs=1e-4)
        assert not result.stopped


@pytest.mark.parametrize("sampling", [GREEDY, WARM, VARIED])
def test_a_batch_gives_each_prompt_the_tokens_that_it_gets_alone(model: GPT, sampling: Sampling) -> None:
    batch = generate(model, PROMPTS, n_ctx=40, max_new_tokens=16, sampling=sampling, seed=11, stop_ids=[3, 17])
    for i, prompt in enumerate(PROMPTS):
        (alone,) = generate(
            model, [prompt], n_ctx=40, max_new_tokens=16, sampling=sampling, seed=11 + i, stop_ids=[3, 17]
        )
        assert batch[i].tokens == alone.tokens
        assert batch[i].stopped == alone.stopped
        assert batch[i].log_probs == pytest.approx(alone.log_probs, abs=1e-4)


def test_each_prompt_can_have_its_own_seed_and_length(model: GPT) -> None:
    limits, seeds = [16, 3, 9, 1, 16], [5, 90, 5, 7, 8]
    batch = generate(model, PROMPTS, n_ctx=40, max_new_tokens=limits, sampling=WARM, seed=seeds)
    for prompt, limit, seed, result in zip(PROMPTS, limits, seeds, batch, strict=True):
        (alone,) = generate(model, [prompt], n_ctx=40, max_new_tokens=limit, sampling=WARM, seed=seed)
        assert result.tokens == alone.tokens
        assert len(result.tokens) == limit
        assert not result.stopped


def test_a_repetition_penalty_counts_prompt_and_text(model: GPT) -> None:
    """A large penalty never takes a token twice; a small one gives the argmax of the penalised logits."""
    strong = generate(model, PROMPTS, n_ctx=40, max_new_tokens=20, sampling=Sampling(repetition_penalty=1e6))
    for prompt, result in zip(PROMPTS, strong, strict=True):
        assert len({*prompt, *result.tokens}) == len(set(prompt)) + 20
    (mild,) = generate(model, [PROMPTS[3]], n_ctx=40, max_new_tokens=20, sampling=Sampling(repetition_penalty=1.2))
    text = list(PROMPTS[3])
    for token in mild.tokens:
        scores = model(torch.tensor([text]))[0, -1]
        for held in set(text):
            scores[held] = scores[held] * 1.2 if scores[held] < 0 else scores[held] / 1.2
        assert int(scores.argmax()) == token
        text.append(token)


@pytest.mark.parametrize("sampling", [WARM, VARIED])
def test_log_probabilities_do_not_depend_on_the_sampling(model: GPT, sampling: Sampling) -> None:
    (result,) = generate(model, [PROMPTS[0]], n_ctx=40, max_new_tokens=12, sampling=sampling, seed=5)
    text = torch.tensor([[*PROMPTS[0], *result.tokens]])
    scores = model(text)[0].log_softmax(-1)
    positions = range(len(PROMPTS[0]) - 1, text.size(1) - 1)
    expected = [float(scores[i, t]) for i, t in zip(positions, result.tokens, strict=True)]
    assert result.log_probs == pytest.approx(expected, abs=1e-4)


def test_equal_seeds_give_equal_texts_and_other_seeds_other_texts(model: GPT) -> None:
    def sample(seed: int) -> list[list[int]]:
        results = generate(model, PROMPTS, n_ctx=40, max_new_tokens=16, sampling=WARM, seed=seed)
        return [result.tokens for result in results]

    assert sample(1) == sample(1)
    assert all(a != b for a, b in zip(sample(1), sample(101), strict=True))


def test_stopping_by_id_and_by_watch(model: GPT) -> None:
    """A stop id is the last token. `watch` sees each token and ends only its own prompt. The other prompts get the same
    tokens as without stops, also after rows have been dropped from the cache."""
    free = generate(model, PROMPTS, n_ctx=40, max_new_tokens=16, sampling=WARM, seed=2)
    stop = free[3].tokens[6]
    seen: list[tuple[int, int]] = []

    def watch(i: int, tokens: list[int]) -> bool:
        seen.append((i, tokens[-1]))
        return i in (0, 1) and len(tokens) == 4

    stopped = generate(model, PROMPTS, n_ctx=40, max_new_tokens=16, sampling=WARM, seed=2, stop_ids={stop}, watch=watch)
    for i, (result, whole) in enumerate(zip(stopped, free, strict=True)):
        limit = 4 if i in (0, 1) else 16
        ends = whole.tokens.index(stop) + 1 if stop in whole.tokens[:limit] else limit
        assert result.tokens == whole.tokens[:ends]
        assert result.stopped == (ends < 16 or whole.tokens[-1] == stop)
        assert [token for j, token in seen if j == i] == result.tokens
    assert len(stopped[3].tokens) <= 7
    assert any(len(result.tokens) == 16 for result in stopped), "some prompt must run to its limit"


def test_only_ids_of_the_tokenizer_are_chosen(model: GPT) -> None:
    (result,) = generate(model, [[1]], n_ctx=40, max_new_tokens=39, sampling=Sampling(temperature=5.0), n_ids=4)
    assert set(result.tokens) == {0, 1, 2, 3}


def test_generation_can_fill_the_context_to_its_last_token() -> None:
    model = random_model(GPT3)
    (result,) = generate(model, [list(range(39))], n_ctx=40, max_new_tokens=1)
    assert result.tokens == recompute(model, list(range(39)), 1)[0]


@pytest.mark.parametrize(
    ("prompts", "max_new_tokens", "words"),
    [
        ([[1], list(range(38))], 3, ["prompt 2 has 38 tokens", "n_ctx = 40", "Lower max_new_tokens to 2"]),
        ([list(range(40))], 1, ["40 tokens", ". Shorten the prompt"]),
        ([[1], []], 1, ["prompt 2 is empty"]),
        ([[1, 61]], 1, ["id 61", "0 to 60"]),
        ([[1]], 0, ["max_new_tokens = 0"]),
        ([[1], [1, 2]], [39, 39], ["prompt 2 has 2 tokens", "max_new_tokens = 39"]),
    ],
)
def test_prompts_without_room_and_wrong_ids_are_refused(
    prompts: list[list[int]], max_new_tokens: Any, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        generate(random_model(GPT3), prompts, n_ctx=40, max_new_tokens=max_new_tokens)
    assert all(word in str(error.value) for word in words), error.value


def test_padding_does_not_affect_the_logits(model: GPT) -> None:
    """Logits after the prompts equal those of each prompt alone, whatever the padding token."""
    _, logits = read_prompts(LocalModel(model), PROMPTS, capacity=30, filler=33)
    for row, prompt in zip(logits, PROMPTS, strict=True):
        torch.testing.assert_close(row, model(torch.tensor([prompt]))[0, -1], rtol=1e-4, atol=1e-4)


def test_vocabulary_padding_is_never_predicted() -> None:
    """Not even if its rows of the head have the largest logits; nor does it take probability from real tokens."""
    model = GPT(replace(GPT3, tied=False))
    initialise(model, GPT3, seed=0)
    with torch.no_grad():
        model.head.weight[GPT3.vocab_size :] = 100.0 * torch.randn(128 - GPT3.vocab_size, 32)
        padded = generate(model, PROMPTS, n_ctx=40, max_new_tokens=8, sampling=WARM)
        model.head.weight[GPT3.vocab_size :] = 0
    assert padded == generate(model, PROMPTS, n_ctx=40, max_new_tokens=8, sampling=WARM)
    assert all(token < GPT3.vocab_size for result in padded for token in result.tokens)
    assert model(torch.tensor([[1, 2]])).shape == (1, 2, GPT3.vocab_size)


@pytest.mark.gpu
@pytest.mark.parametrize("sampling", [GREEDY, WARM, VARIED])
def test_a_gpu_writes_what_a_cpu_writes(model: GPT, sampling: Sampling) -> None:
    """In float64, where no rounding changes a choice."""
    exact = random_model(model.config).double()
    texts = [
        generate(each, PROMPTS, n_ctx=40, max_new_tokens=12, sampling=sampling, seed=3)
        for each in (exact, random_model(model.config).double().cuda())
    ]
    assert [one.tokens for one in texts[0]] == [one.tokens for one in texts[1]]
    for one, other in zip(*texts, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)
