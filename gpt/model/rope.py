"""Rotary positions (arXiv 2104.09864), with Llama 3's scaling."""

import math

import torch
from torch import Tensor

from gpt.model.config import ModelConfig, RopeScaling


class Angles:
    """The rotary angles of all positions, computed once for all layers: cos and sin (1 or b, 1, t, e/2) in fp32.

    Neither a tuple nor a dataclass: FSDP looks into both on the way into a block and would round the angles to the
    compute dtype.
    """

    def __init__(self, cos: Tensor, sin: Tensor) -> None:
        self.cos, self.sin = cos, sin


def rotary_angles(
    positions: Tensor, d_head: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (1 or b, 1, t, e/2) in fp32, of positions (1 or b, t) for heads of width e = d_head."""
    # The order of divisions is that of transformers: one bit here shifts the angle at position 1,000.
    steps = torch.arange(0, d_head, 2, device=positions.device, dtype=torch.float32)
    frequencies = 1.0 / theta ** (steps / d_head)  # (e/2,)
    if scaling is not None:
        frequencies = _stretched(frequencies, scaling)
    angles = positions[:, None, :, None].float() * frequencies
    return angles.cos(), angles.sin()


def _stretched(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    turns = scaling.original_n_ctx * frequencies / (2 * math.pi)  # over the original context
    kept = (turns - scaling.low_frequency) / (scaling.high_frequency - scaling.low_frequency)
    kept = kept.clamp(0.0, 1.0)
    return (1.0 - kept) * frequencies / scaling.factor + kept * frequencies


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + e/2) of the last dimension, as Llama's published weights pair them. Keeps x's dtype."""
    left, right = x.float().chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).to(x.dtype)


def angles_of(config: ModelConfig, positions: Tensor | None, *, length: int, device: torch.device) -> Angles | None:
    """The angles of `positions` (1 or b, t), or of 0 to length - 1; None for a model without rotary positions."""
    if config.positions != "rope":
        return None
    if positions is None:
        positions = torch.arange(length, device=device).unsqueeze(0)
    return Angles(*rotary_angles(positions, config.d_head, config.rope_theta, config.rope_scaling))
