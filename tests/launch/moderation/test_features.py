"""Features are hidden states, (b, t, d) in fp32."""

import torch

from gpt.losses.base import SeveralValues, TokenValues
from launch.moderation.features import HiddenStates


def test_hidden_states_are_values_of_d_numbers():
    loss = HiddenStates(6)
    assert isinstance(loss, TokenValues)
    assert isinstance(loss, SeveralValues)
    hidden = torch.randn(2, 3, 6, dtype=torch.bfloat16)
    found = loss.values(hidden, None)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, hidden.float(), rtol=0, atol=0)
