"""Attention pooling finds a telling token that the mean hides; padding and unknown labels change nothing."""

import numpy as np
import pytest
import torch

from gpt.errors import ConfigError
from gpt.moderation.frozen.attention_pooling import PoolingSettings, fit_attention_pooling, pooled_logits
from gpt.moderation.frozen.linear_heads import fit_heads
from gpt.moderation.measures.ranking import average_precision

D, IDS = 16, ("A", "B")


def drawn(n, seed):
    """Token states of n texts of 20 to 60 tokens, and labels. A: one token has 6 in channel 0, and another has -6, so
    that the mean does not show it. B: all tokens are moved. The first token is huge, as in a language model."""
    draw = np.random.default_rng(seed)
    states, labels = [], draw.random((n, 2)) < 0.3
    for is_a, is_b in labels:
        x = draw.normal(size=(draw.integers(20, 61), D))
        x[:, 2] += 0.8 * is_b
        if is_a:
            x[draw.choice(np.arange(1, len(x)), 2, replace=False), 0] = 6, -6
        x[0, 3] = 500
        states.append(torch.from_numpy(x).to(torch.bfloat16))
    return states, labels.astype(np.float64)


def test_a_single_telling_token_is_found():
    states, labels = drawn(200, 0)
    more, truth = drawn(200, 1)
    settings = PoolingSettings(n_queries=8, epochs=16, learning_rate=5e-2)
    found = pooled_logits(fit_attention_pooling(states, labels, IDS, settings), more)
    means = [np.stack([one.float().mean(0).numpy() for one in texts]) for texts in (states, more)]
    plain = fit_heads(means[0], labels, IDS, l2=1.0, standardise=True).logits(means[1])
    assert average_precision(truth[:, 0], found[:, 0]) > 0.95
    assert average_precision(truth[:, 0], plain[:, 0]) < 0.5
    assert average_precision(truth[:, 1], found[:, 1]) > 0.9


def test_padding_changes_no_logit_and_the_seed_fixes_the_fit():
    states, labels = drawn(60, 2)
    settings = PoolingSettings(epochs=1, batch_texts=16)
    before = torch.get_rng_state()
    first, second = (fit_attention_pooling(states, labels, IDS, settings) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)  # other random draws of the program stay the same
    together, alone = pooled_logits(first, states), pooled_logits(first, states, batch_texts=1)
    assert np.abs(together - alone).max() < 1e-4
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_category_learns_from_its_known_labels_alone():
    """Two texts have a label of the first category. What the other texts hold changes nothing of it."""
    states, labels = drawn(64, 3)
    hidden = labels.copy()
    hidden[:, 0] = np.nan
    hidden[:2, 0] = (0, 1)
    settings = PoolingSettings(epochs=1, batch_texts=64, n_queries=1)
    other = hidden.copy()
    other[2:, 1] = 1 - other[2:, 1]
    values = [fit_attention_pooling(states, one, IDS, settings).value.detach()[..., 0] for one in (hidden, other)]
    assert torch.equal(*values)
    complete = fit_attention_pooling(states, labels, IDS, settings).value.detach()[..., 0]
    assert not torch.equal(complete, values[0])


def test_what_cannot_be_fitted_is_refused():
    states, labels = drawn(20, 4)
    with pytest.raises(ConfigError, match=r"learning_rate = 0 is invalid: must be above 0\. Use 0\.002"):
        PoolingSettings(learning_rate=0.0)
    with pytest.raises(ConfigError, match="a text without a token is invalid"):
        fit_attention_pooling([*states[1:], states[0][:0]], labels, IDS)
    labels[:, 1] = 0
    with pytest.raises(ConfigError, match="category 'B' has no positive label in 20 texts"):
        fit_attention_pooling(states, labels, IDS)
