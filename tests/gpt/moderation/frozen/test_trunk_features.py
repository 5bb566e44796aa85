"""Features of several layers, in batches with padding, equal those of each text alone."""

import numpy as np
import pytest
import torch

from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from gpt.moderation.frozen.trunk_features import layer_features

CONFIG = ModelConfig(vocab_size=50, n_ctx=32, n_layers=3, d_model=16, n_heads=2, positions="rope")


@pytest.fixture(scope="module")
def model():
    found = GPT(CONFIG)
    initialise(found, CONFIG, seed=1)
    return found.double()


def test_a_text_in_a_batch_has_the_features_that_it_has_alone(model):
    draw = np.random.default_rng(0)
    texts = [draw.integers(0, 50, size=length) for length in (5, 1, 20, 7, 7, 3)]
    done = []
    found = layer_features(model, texts, [1, 3], batch_tokens=24, advance=done.append)
    assert sum(done) == len(texts) < len(done) * 6
    for text, features in zip(texts, found, strict=True):
        ids = torch.from_numpy(text)[None]
        with torch.no_grad():
            first = GPT(CONFIG, range(1), last=False).double()
            first.load_state_dict(
                {k: v for k, v in model.state_dict().items() if k.startswith(("embed.", "blocks.0."))}
            )
            one, last = first.hidden_states(ids)[0], model.hidden_states(ids)[0]
        expected = torch.cat((one.mean(0), one[-1], last.mean(0), last[-1]))
        assert np.allclose(features, expected.numpy(), rtol=0, atol=1e-6)


def test_a_layer_that_is_not_there_is_refused(model):
    for layer in (0, 4):
        with pytest.raises(ConfigError, match=f"layer {layer} is invalid: the trunk has the layers 1 to 3"):
            layer_features(model, [np.array([1])], [layer])


def test_a_prefix_is_read_and_left_out_of_the_pools(model):
    draw = np.random.default_rng(1)
    texts = [draw.integers(0, 50, size=length) for length in (4, 9, 3)]
    found = layer_features(model, texts, [2], pools=["max", "mean"], skip=2)
    for text, features in zip(texts, found, strict=True):
        with torch.no_grad():
            first = GPT(CONFIG, range(2), last=False).double()
            first.load_state_dict({k: v for k, v in model.state_dict().items() if k in first.state_dict()})
            hidden = first.hidden_states(torch.from_numpy(text)[None])[0, 2:]
        assert np.allclose(features, torch.cat((hidden.amax(0), hidden.mean(0))).numpy(), rtol=0, atol=1e-6)


def test_an_unknown_pool_and_a_text_without_tokens_are_refused(model):
    with pytest.raises(ConfigError, match="pool 'median' is invalid: must be one of mean, last, max"):
        layer_features(model, [np.array([1])], [1], pools=["median"])
    with pytest.raises(ConfigError, match=r"skip = 1 is invalid: the shortest text has 1 tokens. Use at most 0"):
        layer_features(model, [np.array([1]), np.array([1, 2])], [1], skip=1)


def test_short_texts_fill_a_batch(model):
    done = []
    layer_features(model, [np.array([1, 2, 3])] * 50, [1], batch_tokens=90, advance=done.append)
    assert done == [30, 20]
