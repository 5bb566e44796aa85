"""One batch of training data: inputs, targets, and the limits of attention and loss."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor

from gpt.losses.marks import IGNORE

_EXTRA = "extra."

NO_EXTRA: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True)
class Batch:
    """n rows of t positions. Every tensor has n rows; an absent one costs nothing.

    `inputs` (n, t) int64 token ids, or whatever the model's front takes. `targets`: what the loss compares with, for
    next-token prediction (n, t) int64 with IGNORE where nothing is learnt. `loss_mask` (n, t) bool, False where the
    loss does not count. `positions` (n, t) int64, counted from 0 in each row if absent. `segment_ids` (n, t) int64:
    attention stays within equal ids, and no id may come back in a row after another; PADDING, which may, marks
    positions that hold nothing. `row_keys` (n,) int32: from them dropout draws its masks; absent, nothing is dropped.
    `lengths` (n,) int64: positions of each row before its padding, which an engine may leave out of its work; values of
    left out positions are 0. `extra`: further tensors for the loss.
    """

    inputs: Tensor
    targets: Tensor
    loss_mask: Tensor | None = None
    positions: Tensor | None = None
    segment_ids: Tensor | None = None
    row_keys: Tensor | None = None
    lengths: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=lambda: NO_EXTRA)

    def __len__(self) -> int:
        return self.inputs.size(0)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name; `from_tensors` reverses it. Engines move, split and send batches in this form."""
        named = {
            "inputs": self.inputs,
            "targets": self.targets,
            "loss_mask": self.loss_mask,
            "positions": self.positions,
            "segment_ids": self.segment_ids,
            "row_keys": self.row_keys,
            "lengths": self.lengths,
        }
        extra = {f"{_EXTRA}{name}": tensor for name, tensor in self.extra.items()}
        return {name: tensor for name, tensor in named.items() if tensor is not None} | extra

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Batch":
        """The batch that `tensors` took apart."""
        extra = {name.removeprefix(_EXTRA): t for name, t in tensors.items() if name.startswith(_EXTRA)}
        named = {name: t for name, t in tensors.items() if not name.startswith(_EXTRA)}
        return cls(**named, extra=extra or NO_EXTRA)

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; the same object if it is there already.

        A GPU copies from page-locked memory without making the host wait.
        """
        if self.inputs.device == device:
            return self
        tensors = self.tensors()
        if device.type != "cuda" or self.inputs.device.type != "cpu":  # the host must wait for a copy that it reads
            return Batch.from_tensors({name: tensor.to(device) for name, tensor in tensors.items()})
        pinned = self.pinned().tensors()
        return Batch.from_tensors({name: tensor.to(device, non_blocking=True) for name, tensor in pinned.items()})

    def pinned(self) -> "Batch":
        """The batch in page-locked memory; tensors that are there already are kept.

        torch's allocator gives the memory to nobody else before the copies from it, which follow the stream, are done.
        """
        return Batch.from_tensors({name: tensor.pin_memory() for name, tensor in self.tensors().items()})

    def split(self, rows: int) -> Iterator["Batch"]:
        """Micro-batches of `rows` rows, in order."""
        pieces = {name: torch.split(tensor, rows) for name, tensor in self.tensors().items()}
        for i in range(len(pieces["inputs"])):
            yield Batch.from_tensors({name: cut[i] for name, cut in pieces.items()})

    def without_rows(self, rows: Sequence[int]) -> "Batch":
        """The batch with these rows masked out of the loss."""
        if not rows:
            return self
        mask = self.loss_mask
        mask = torch.ones(self.inputs.shape[:2], dtype=torch.bool) if mask is None else mask.clone()
        mask[list(rows)] = False
        return replace(self, loss_mask=mask)


def counted_rows(targets: Tensor) -> Tensor | None:
    """The indices of the targets (n,) that are not IGNORE, in order, at least one; None on a GPU.

    A GPU would have to tell the host how many there are. The fake tensors of a dry run keep all too.
    """
    if type(targets) is not Tensor or targets.device.type != "cpu":
        return None
    rows = (targets != IGNORE).nonzero().squeeze(1)
    return rows if rows.numel() else rows.new_zeros(1)


def counted_targets(batch: Batch) -> Tensor:
    """The targets (n, t), IGNORE also where the loss mask is False."""
    return batch.targets if batch.loss_mask is None else batch.targets.masked_fill(~batch.loss_mask, IGNORE)
