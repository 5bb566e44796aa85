"""Rotary positions: against complex numbers, relative positions, given positions, and Llama 3's scaling."""

import dataclasses
import math
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gpt.model.config import ModelConfig, RopeScaling
from gpt.model.gpt import GPT
from gpt.model.rope import angles_of, rotary_angles, rotate

CONFIG = ModelConfig(vocab_size=50, n_ctx=64, n_layers=1, d_model=32, n_heads=4, positions="rope")  # d_head = 8


def rotated(x, positions, theta=10_000.0):
    cos, sin = rotary_angles(positions, x.size(-1), theta)
    return rotate(x, cos, sin)


def test_a_pair_turns_like_a_complex_number():
    """(x[i], x[i + e/2]) as x + iy times exp(i * position / theta^(2i/e))."""
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    position = torch.tensor([[0, 1, 7, 30, 1000]])
    pairs = torch.complex(x[..., :4], x[..., 4:])
    angle = position[0, :, None].double() * 10_000.0 ** (-torch.arange(4).double() / 4)
    turned = pairs * torch.polar(torch.ones_like(angle), angle)
    ours = rotated(x, position)
    assert ours.dtype == x.dtype
    torch.testing.assert_close(ours, torch.cat((turned.real, turned.imag), -1), rtol=1e-3, atol=1e-3)
    assert torch.equal(ours[:, :, 0], x.float().double()[:, :, 0]), "position 0 does not turn"


def test_scores_depend_on_the_distance_alone():
    q, k = (torch.randn(1, 1, 1, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    scores = [
        (rotated(q, torch.tensor([[start + 5]])) * rotated(k, torch.tensor([[start]]))).sum().item()
        for start in (0, 3, 40)
    ]
    assert scores == pytest.approx([scores[0]] * 3, rel=1e-4)
    other = (rotated(q, torch.tensor([[4]])) * rotated(k, torch.tensor([[0]]))).sum().item()
    assert other != pytest.approx(scores[0], rel=1e-2)


def test_angles_are_made_of_the_given_positions_or_count_from_0():
    given = torch.tensor([[0, 1, 2, 0, 1], [5, 6, 7, 8, 9]])
    angles = angles_of(CONFIG, given, length=5, device=torch.device("cpu"))
    assert angles.cos.shape == angles.sin.shape == (2, 1, 5, 4)
    assert angles.cos.dtype == torch.float32
    counted = angles_of(CONFIG, None, length=3, device=torch.device("cpu"))
    assert counted.cos.shape == (1, 1, 3, 4)
    assert torch.equal(counted.sin[0, 0], angles.sin[0, 0, :3])
    assert torch.equal(angles.cos[0, 0, 3:], angles.cos[0, 0, :2]), "positions may start again"


@pytest.mark.parametrize("n_layers", [1, 3])
def test_angles_are_computed_once_for_all_layers(n_layers):
    """On a GPU each block would otherwise compute them in fp32, in several kernels of its own."""
    model = GPT(dataclasses.replace(CONFIG, n_layers=n_layers))
    counted = Counter()

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            counted[func.name().partition(".")[0]] += 1
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Operations():
        model(torch.zeros(1, 5, dtype=torch.int64))
    assert (counted["aten::cos"], counted["aten::sin"]) == (1, 1)


def test_other_models_have_no_angles():
    learned = dataclasses.replace(CONFIG, positions="learned")
    assert angles_of(learned, None, length=3, device=torch.device("cpu")) is None


def test_scaling_divides_slow_angles_and_keeps_fast_ones():
    """Llama 3.1's rule, written out for each frequency."""
    scaling = RopeScaling(factor=8.0, low_frequency=1.0, high_frequency=4.0, original_n_ctx=512)
    one = torch.tensor([[1]])
    cos, sin = rotary_angles(one, 64, 500_000.0, scaling)
    angle = torch.atan2(sin, cos).flatten()
    kinds = set()
    for i, ours in enumerate(angle.tolist()):
        frequency = 500_000.0 ** (-i / 32)
        turns = 512 * frequency / (2 * math.pi)
        share = min(1.0, max(0.0, (turns - 1.0) / 3.0))
        kinds.add((share == 0.0) - (share == 1.0))
        assert ours == pytest.approx((1 - share) * frequency / 8 + share * frequency, rel=1e-5)
    assert kinds == {-1, 0, 1}, "slow, fast and between"
