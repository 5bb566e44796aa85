"""Dropout on what each block adds to the residual stream, by masks that no layout changes.

Whether an element is dropped is a function of its row's key, its position in the row, its layer and its channel. Ranks
that share a sequence, other micro-batches and recomputation therefore draw the same mask, without any state.

Shapes: b rows, t positions of this rank's part of the sequence, d = d_model.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_POSITION, _LAYER, _PART, _CHANNEL = 0x2545F491, 0x3C6EF372, 0x1B873593, 0x1E3779B1
_SIGN = 0x7FFFFFFF


def row_keys(seed: int, positions: NDArray[np.int64]) -> NDArray[np.int32]:
    """A key (n,) for each of a run's rows, from their positions (n,) in the order of the data (SplitMix64)."""
    with np.errstate(over="ignore"):
        x = positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed % 2**64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x >> np.uint64(32)).astype(np.uint32).view(np.int32)


@dataclass(frozen=True)
class BlockDropout:
    """Dropout of one block: `keys` (b, t) int32 of its positions, and the share of elements to drop."""

    keys: Tensor
    rate: float

    def __call__(self, x: Tensor, part: int) -> Tensor:
        """x (b, t, d) with dropped elements 0 and the others scaled by 1 / (1 - rate). `part`: 0 attention, 1 MLP."""
        keys = scrambled(self.keys + part * _PART).unsqueeze(-1)  # (b, t, 1)
        channels = torch.arange(x.size(-1), dtype=torch.int32, device=x.device) * _CHANNEL  # (d,)
        kept = (scrambled(keys ^ channels) & _SIGN) >= round(self.rate * 2**31)  # (b, t, d)
        return torch.where(kept, x * (1 / (1 - self.rate)), 0.0)


@dataclass(frozen=True)
class ResidualDropout:
    """Dropout of all blocks: `keys` (b, t) int32 of the positions, and the share of elements to drop."""

    keys: Tensor
    rate: float

    def of_layer(self, layer: int) -> BlockDropout:
        """The layer becomes part of the keys, outside the block, so that all layers share one compiled block."""
        return BlockDropout(scrambled(self.keys + layer * _LAYER % 2**31), self.rate)


def position_keys(rows: Tensor, *, length: int) -> Tensor:
    """Keys (b, t) of all positions of rows with the keys (b,)."""
    positions = torch.arange(length, dtype=torch.int32, device=rows.device) * _POSITION
    return scrambled(rows.unsqueeze(1) ^ positions)


def scrambled(x: Tensor) -> Tensor:
    """An int32 hash of each element, with the constants of lowbias32 (Chris Wellons, public domain).

    int32 products wrap around, and shifts are made logical by a mask.
    """
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * (0x846CA68B - 2**32)
    return x ^ ((x >> 16) & 0xFFFF)
