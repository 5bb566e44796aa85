"""Features are hidden states, (b, t, d) in fp32."""

import pytest
import torch

from gpt.errors import ConfigError
from gpt.losses.base import SeveralValues, TokenValues
from gpt.losses.batch import Batch
from gpt.moderation.config import ClassifierConfig
from launch.moderation.features import HiddenStates, TextFeatures


def test_hidden_states_are_values_of_d_numbers():
    loss = HiddenStates(6)
    assert isinstance(loss, TokenValues)
    assert isinstance(loss, SeveralValues)
    hidden = torch.randn(2, 3, 6, dtype=torch.bfloat16)
    found = loss.values(hidden, Batch(torch.zeros(2, 3), torch.zeros(2, 3)))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, hidden.float(), rtol=0, atol=0)


def test_attention_has_no_features():
    classifier = ClassifierConfig(pool="attention").build(z_loss=0.0)
    with pytest.raises(
        ConfigError, match=r"objective\.pool = 'attention' is .*\. Train a new run with objective\.pool = 'mean'"
    ):
        TextFeatures(classifier, 8)
