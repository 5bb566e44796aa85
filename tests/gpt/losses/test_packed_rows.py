"""Micro-batches without padding: one row, and values put back where they were."""

import pytest
import torch

from gpt.losses.batch import Batch
from gpt.losses.marks import IGNORE, PADDING
from gpt.losses.packed_rows import micro_batches

N, T = 4, 5
LENGTHS = torch.tensor([3, 1, 5, 2])


def padded_batch(*, lengths=LENGTHS):
    tokens = torch.arange(1, N * T + 1).view(N, T)
    return Batch(
        tokens,
        tokens + 100,
        loss_mask=tokens % 2 == 0,
        lengths=lengths,
        extra={"weights": tokens * 0.5},
    )


def test_rows_are_joined_without_their_padding():
    first, second = micro_batches(padded_batch(), rows=2, multiple=3)
    assert first.batch.inputs.tolist() == [[1, 2, 3, 6, 0, 0]]
    assert first.batch.targets.tolist() == [[101, 102, 103, 106, IGNORE, IGNORE]]
    assert first.batch.loss_mask.tolist() == [[False, True, False, True, False, False]]
    assert first.batch.positions.tolist() == [[0, 1, 2, 0, 0, 0]]
    assert first.batch.segment_ids.tolist() == [[0, 0, 0, 1, PADDING, PADDING]]
    assert first.batch.extra["weights"].tolist() == [[0.5, 1.0, 1.5, 3.0, 0.0, 0.0]]
    assert first.batch.lengths is None
    assert second.batch.inputs.shape == (1, 9)


@pytest.mark.parametrize("multiple", [None, 1, 4])
def test_values_go_back_to_their_rows(multiple):
    """Values (n, t) and (n, t, 2); 0 where a position was left out."""
    batch = padded_batch()
    kept = torch.arange(T) < LENGTHS[:, None]
    for values_of in (lambda x: x * 2.0, lambda x: torch.stack((x, -x), dim=-1)):
        parts = micro_batches(batch, rows=2, multiple=multiple)
        found = torch.cat([part.unpack(values_of(part.batch.inputs)) for part in parts])
        expected = values_of(batch.inputs)
        if multiple is not None:
            expected = expected * kept.view(N, T, *[1] * (expected.dim() - 2))
        assert torch.equal(found, expected)


def test_a_batch_that_does_not_say_where_padding_begins_keeps_it():
    (part,) = micro_batches(padded_batch(lengths=None), rows=N, multiple=1)
    assert part.batch.inputs.shape == (N, T)
