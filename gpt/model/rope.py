"""Rotary positions (arXiv 2104.09864), with Llama 3's scaling."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt.model.config import ModelConfig, RopeScaling


@dataclass(frozen=True)
class Angles:
    """Positions as all layers' `rotary_angles`, so that each need not compute them. No tuple: FSDP would round its
    tensors on their way into a block."""

    cos: Tensor
    sin: Tensor


def rotary_angles(
    positions: Tensor, d_head: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (1 or b, 1, t, e/2) in fp32, of positions (1 or b, t) for heads of width e = d_head."""
    # Divided in this order, as transformers does: a last bit off is an angle off at position 1,000.
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
    """Turn the pairs (i, i + e/2) of the last dimension, the pairing of Llama's published weights; keeps x's dtype."""
    left, right = x.float().chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).to(x.dtype)


def _rotary(config: ModelConfig) -> tuple[int, float, RopeScaling | None] | None:
    return (config.d_head, config.rope_theta, config.rope_scaling) if config.positions == "rope" else None
