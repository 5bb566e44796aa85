"""Continuous batching gives each prompt the response that it gets alone."""

import math
import random

import pytest
import torch

from gpt.errors import ConfigError
from gpt.inference.generation import generate
from gpt.inference.model import LocalModel
from gpt.inference.sampling_settings import Sampling
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.post_training.ppo.rollouts import episode_seed, sample_responses

V, N_CTX, NEW = 61, 40, 12
ENDS = (3, 4, 5, 6)


@pytest.fixture(scope="module", params=["learned", "rope"])
def model(request: pytest.FixtureRequest) -> LocalModel:
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=V,
        n_ctx=N_CTX,
        n_layers=2,
        d_model=32,
        n_heads=4,
        n_kv_heads=2,
        positions=request.param,
        tied=False,
    )
    model = GPT(config).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return LocalModel(model.eval())


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    source = random.Random(1)
    return [[source.randrange(V) for _ in range(source.randrange(1, N_CTX - NEW))] for _ in range(11)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_response_is_that_of_the_prompt_alone(model, prompts, temperature: float) -> None:
    """In float64, so that rounding decides no draw. Rows are taken over many times, and the cache is shifted."""
    seeds = [episode_seed(7, i) for i in range(len(prompts))]
    alone = [
        generate(
            model, [prompt], n_ctx=N_CTX, max_new_tokens=NEW, sampling=Sampling(temperature), seed=seed, stop_ids=ENDS
        )[0]
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    for rows in (1, 3, 40):
        found = sample_responses(
            model, prompts, seeds=seeds, temperature=temperature, end_ids=ENDS, max_new_tokens=[NEW] * 11, rows=rows
        )
        assert [response.tokens for response in found] == [one.tokens for one in alone]
        assert [response.ended for response in found] == [one.tokens[-1] in ENDS for one in alone]
        for response, one in zip(found, alone, strict=True):
            assert response.log_probs == pytest.approx(one.log_probs, abs=1e-5)
    assert not temperature or {response.ended for response in found} == {True, False}, "some end early, some are cut"


def test_a_long_prompt_enters_after_short_ones_have_shifted_the_cache(model) -> None:
    """While only short sequences are left in the cache, it keeps the positions that the longest prompt needs."""
    prompts, new = [*[[7, 8]] * 18, [9] * 30], 2
    for rows in (1, 2):
        found = sample_responses(
            model, prompts, seeds=range(19), temperature=1.0, end_ids=(), max_new_tokens=[new] * 19, rows=rows
        )
        alone = sample_responses(
            model, prompts[-1:], seeds=[18], temperature=1.0, end_ids=(), max_new_tokens=[new], rows=1
        )
        assert found[-1].tokens == alone[0].tokens


def test_log_probabilities_are_those_of_the_temperature(model, prompts) -> None:
    """They are what a forward pass over the whole sequence gives at the sampler's temperature."""
    found = sample_responses(
        model, prompts, seeds=range(len(prompts)), temperature=0.5, end_ids=ENDS, max_new_tokens=[NEW] * 11, rows=4
    )
    for prompt, response in zip(prompts, found, strict=True):
        logits = model.model(torch.tensor([prompt + response.tokens]))[0].detach() / 0.5
        expected = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(response.tokens)[:, None])[:, 0]
        assert response.log_probs == pytest.approx(expected.tolist(), abs=1e-4)


def test_ids_without_a_token_are_never_chosen(model, prompts) -> None:
    found = sample_responses(
        model, prompts, seeds=range(11), temperature=5.0, end_ids=ENDS, max_new_tokens=[NEW] * 11, rows=8, n_ids=V - 20
    )
    assert max(max(response.tokens) for response in found) < V - 20


def test_weights_that_are_not_finite_end_with_one_line() -> None:
    """OpenRLHF 1120: such a policy wrote "!!!!", the token of id 0, and training went on."""
    config = ModelConfig(vocab_size=V, n_ctx=N_CTX, n_layers=1, d_model=32, n_heads=4)
    broken = GPT(config)
    for parameter in broken.parameters():
        torch.nn.init.constant_(parameter, math.nan)
    with pytest.raises(ConfigError, match=r"log-probability nan .*: its weights are not finite"):
        sample_responses(
            LocalModel(broken), [[1]], seeds=[0], temperature=1.0, end_ids=ENDS, max_new_tokens=[NEW], rows=1
        )


def test_seeds_are_a_pure_function_of_run_and_episode() -> None:
    assert episode_seed(7, 0) == episode_seed(7, 0)
    assert len({episode_seed(seed, i) for seed in range(30) for i in range(30)}) == 900
    draws = [random.Random(episode_seed(1, i)).random() for i in range(4000)]
    assert abs(sum(draws) / 4000 - 0.5) < 4 * math.sqrt(1 / 12 / 4000)


def test_no_prompts_give_no_responses(model) -> None:
    assert sample_responses(model, [], seeds=[], temperature=1.0, end_ids=(), max_new_tokens=[], rows=2) == []
