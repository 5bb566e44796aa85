"""LocalModel gives the logits and log-probabilities of the plain GPT, with a cache and without."""

import pytest
import torch

from gpt.inference.model import ForwardInputs, LocalModel, as_model
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise

CONFIG = ModelConfig(vocab_size=61, n_ctx=16, n_layers=2, d_model=32, n_heads=4, init_std=0.3)
TOKENS = torch.tensor([[5, 3, 60, 7], [1, 2, 3, 4]])


@pytest.fixture(scope="module")
def model() -> GPT:
    model = GPT(CONFIG)
    initialise(model, CONFIG, seed=4)
    return model.requires_grad_(False)


@torch.inference_mode()
def test_logits_are_those_of_the_plain_model(model: GPT) -> None:
    """By default after the last token of each row; else after the tokens at the indices."""
    whole, local = model(TOKENS), LocalModel(model)
    inputs = ForwardInputs(TOKENS, torch.arange(4).unsqueeze(0))
    torch.testing.assert_close(local.next_logits(inputs), whole[:, -1])
    indices = torch.tensor([0, 3, 6])
    torch.testing.assert_close(local.next_logits(inputs, indices=indices), whole.flatten(0, 1)[indices])
    targets = torch.tensor([7, 8, 9])
    log_probs, greedy = local.log_probs(inputs, indices=indices, targets=targets)
    expected = whole.flatten(0, 1)[indices].log_softmax(-1)
    torch.testing.assert_close(log_probs, expected.gather(1, targets.unsqueeze(1)).squeeze(1))
    assert torch.equal(greedy, expected.argmax(-1) == targets)


@torch.inference_mode()
def test_a_pass_can_continue_the_cache(model: GPT) -> None:
    local = LocalModel(model)
    cache = local.make_cache(4)
    local.next_logits(ForwardInputs(TOKENS[:, :3], torch.arange(3).unsqueeze(0), cache=cache))
    last = ForwardInputs(TOKENS[:, 3:], torch.tensor([[3]]), cache=cache)
    torch.testing.assert_close(local.next_logits(last), model(TOKENS)[:, -1], rtol=1e-4, atol=1e-4)


def test_a_gpt_is_wrapped_and_an_inference_model_is_not(model: GPT) -> None:
    local = LocalModel(model)
    assert as_model(local) is local
    assert isinstance(as_model(model), LocalModel)
    assert local.gather([1, "a"]) == [[1, "a"]]
