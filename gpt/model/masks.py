"""Attention masks: the positions that each query may attend to, in a form that keeps the fused attention kernels.

Shapes: b sequences, t positions.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class AttentionMask:
    """A mask by rule. Its tensors are integers, which FSDP does not cast on the way into a block.

    `kind`: `causal`, `full` (bidirectional) or `prefix` (bidirectional within the first `prefix_lengths` (b,)
    positions, causal after them). `segment_ids` (b, t) int64: attention stays within equal ids, and positions with the
    id PADDING attend to nothing that counts. An id must not come back in a row after another id.
    `blocks` is the same rule for FlexAttention, on a GPU.
    """

    kind: Literal["causal", "full", "prefix"] = "causal"
    segment_ids: Tensor | None = None
    prefix_lengths: Tensor | None = None
    blocks: BlockMask | None = None

    def __post_init__(self) -> None:
        assert (self.kind == "prefix") == (self.prefix_lengths is not None), f"{self.kind} mask and its prefix_lengths"

    def for_device(self, *, rows: int, length: int, device: torch.device) -> "AttentionMask":
        """On a GPU, with the block mask that FlexAttention needs, built once for all layers. No synchronisation."""
        if device.type != "cuda" or (self.segment_ids is None and self.kind != "prefix"):
            return self
        blocks = create_block_mask(self.rule, B=rows, H=None, Q_LEN=length, KV_LEN=length, device=str(device))
        return replace(self, blocks=blocks)

    @property
    def rule(self) -> MaskFunction:
        """Return the rule (row, head, query, key) -> whether the query may attend to the key, elementwise over indices.

        It is FlexAttention's mask function. FlexAttention refuses a bound method, because it counts `self` as well.
        """
        full, segment_ids, prefix_lengths = self.kind == "full", self.segment_ids, self.prefix_lengths

        def allows(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            allowed = query >= key
            if full:
                allowed = allowed | (query < key)
            elif prefix_lengths is not None:
                allowed = allowed | (key < prefix_lengths[row])
            if segment_ids is not None:
                allowed = allowed & (segment_ids[row, query] == segment_ids[row, key])
            return allowed

        return allows

    def dense(self, rows: int, length: int, device: torch.device) -> Tensor:
        """The mask as booleans (b, 1, t, t), True where a query may attend to a key."""
        row = torch.arange(rows, device=device)[:, None, None, None]
        query, key = (torch.arange(length, device=device).view(shape) for shape in ((1, 1, -1, 1), (1, 1, 1, -1)))
        return self.rule(row, row, query, key).expand(rows, 1, length, length)


def document_mask(segment_ids: Tensor | None) -> AttentionMask | None:
    """Causal attention within each document; None, plain causal attention, without segment ids."""
    return None if segment_ids is None else AttentionMask(segment_ids=segment_ids)


def is_segmented(mask: Any) -> bool:
    """Return whether a mask is by segments alone. The CPU kernel computes such a mask segment by segment."""
    return isinstance(mask, AttentionMask) and mask.segment_ids is not None and mask.kind != "prefix"
