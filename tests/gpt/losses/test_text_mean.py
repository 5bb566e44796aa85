"""The mean over a text is of its own tokens alone, in a row that holds several texts."""

import pytest
import torch

from gpt.losses.text_mean import mean_over_text


def test_the_mean_over_a_text_is_of_its_own_tokens_alone():
    values = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(5), requires_grad=True)
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 0], [0, 1, 2, 3, 4, 5, 6]])
    found = mean_over_text(values, positions)
    assert torch.allclose(found[0, 2], values[0, :3].mean(0), atol=1e-7)
    assert torch.allclose(found[0, 4], values[0, 3:5].mean(0), atol=1e-7)
    assert torch.equal(found[0, 5], values[0, 5])
    assert torch.allclose(found[1, 6], values[1].mean(0), atol=1e-7)
    assert torch.equal(mean_over_text(values, None)[1], found[1])
    (gradient,) = torch.autograd.grad(found[0, 4].sum(), values)
    assert torch.allclose(gradient[0, 3:5], torch.full((2, 3), 0.5))
    assert gradient.abs().sum().item() == pytest.approx(3.0, abs=1e-6)
