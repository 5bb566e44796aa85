"""Micro-batches as one row each, without padding, and values of their tokens put back in the batch's rows.

Shapes: n rows, t positions, m positions that hold something, w width of the one row.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from gpt.losses.batch import Batch
from gpt.losses.marks import IGNORE, PADDING


@dataclass(frozen=True)
class MicroBatch:
    """What a model runs. With `index` (m,), the batch is one row, and these are its positions among the n * t before.

    Attention and positions restart at each of the joined rows; the segment ids are the rows' numbers.
    """

    batch: Batch
    index: Tensor | None = None
    shape: tuple[int, int] = (0, 0)  # (n, t) before

    def unpack(self, values: Tensor) -> Tensor:
        """Values of the model's positions as (n, t, ...), 0 at positions that were left out."""
        if self.index is None:
            return values
        whole = values.new_zeros(self.shape[0] * self.shape[1], *values.shape[2:])
        whole = whole.index_copy(0, self.index, values[0, : len(self.index)])
        return whole.view(*self.shape, *values.shape[2:])


def micro_batches(batch: Batch, *, rows: int, multiple: int | None) -> Iterator[MicroBatch]:
    """Split a batch into micro-batches of `rows` rows. Those that have `lengths` lose their padding.

    `multiple`: of the width of such a micro-batch; None keeps the padding. The result depends on the batch alone, so
    that two passes over it run the same code on the same shapes.
    """
    for part in batch.split(rows):
        yield MicroBatch(part) if multiple is None or part.lengths is None else _packed(part, part.lengths, multiple)


def _packed(batch: Batch, lengths: Tensor, multiple: int) -> MicroBatch:
    """Join the rows of a batch whose targets and `extra` are (n, t) and that has one document in each row."""
    assert batch.positions is None
    assert batch.segment_ids is None
    assert batch.row_keys is None
    n, t = batch.inputs.shape
    column = torch.arange(t, device=batch.inputs.device).expand(n, t)
    row = torch.arange(n, device=column.device)[:, None].expand(n, t)
    index = (column < lengths[:, None]).flatten().nonzero().squeeze(1)
    rest = -len(index) % multiple

    def join(x: Tensor, filler: float) -> Tensor:
        assert x.shape == (n, t), f"{tuple(x.shape)} in a batch of {(n, t)}"
        return functional.pad(x.reshape(-1)[index], (0, rest), value=filler).unsqueeze(0)  # (1, w)

    packed = Batch(
        join(batch.inputs, 0),
        join(batch.targets, IGNORE),
        loss_mask=None if batch.loss_mask is None else join(batch.loss_mask, 0),
        positions=join(column, 0),
        segment_ids=join(row, PADDING),
        extra={name: join(x, 0) for name, x in batch.extra.items()},
    )
    return MicroBatch(packed, index, (n, t))
