"""Score whole sequences with an engine whose head gives one number a position or several, on any layout."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt.losses.batch import Batch
from gpt.losses.marks import IGNORE, PADDING
from gpt.training.objective import positions_of

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
MIN_ROW_TOKENS = 1024  # so that short sequences share a row


class TokenScorer(Protocol):
    """The part of gpt.training.engine.Engine that scoring needs."""

    @property
    def data_rank(self) -> int: ...

    @property
    def data_size(self) -> int: ...

    def token_values(self, batch: Batch) -> Tensor: ...

    def all_gather_objects(self, values: list[Any]) -> list[list[Any]]: ...


@runtime_checkable
class SequenceScorer(Protocol):
    """A scorer of this process alone that takes sequences as they are, without rows and padding."""

    @property
    def data_size(self) -> int: ...

    def sequence_values(self, sequences: Sequence[Ints]) -> Tensor:
        """The values (n,) or (n, c) at the last token of each sequence. None may be empty."""
        ...

    def all_gather_objects(self, values: list[Any]) -> list[list[Any]]: ...


def row_tokens_for(lengths: Sequence[int], *, multiple: int) -> int:
    """The tokens of a row that holds the longest sequence, a multiple of `multiple` (the tensor ranks)."""
    longest = max(MIN_ROW_TOKENS, *lengths)
    return -(-longest // multiple) * multiple


def score_sequences(
    engine: TokenScorer | SequenceScorer,
    sequences: Sequence[Ints],
    *,
    row_tokens: int,
    rows_at_once: int,
    advance: Callable[[int], None] = lambda n: None,
) -> Floats:
    """The engine's value at the last token of each sequence, (n,), on every rank. Every rank must call it.

    It is (n, c) if the engine has c values a token, and n is not 0. A row holds several sequences, apart from each
    other, so a score does not depend on its neighbours. None may be empty or longer than the model's context.
    `advance` gets the number of sequences that are finished.
    A SequenceScorer gets batches of at most `row_tokens` * `rows_at_once` tokens.
    """
    if isinstance(engine, SequenceScorer):
        return _score_without_rows(engine, sequences, batch_tokens=row_tokens * rows_at_once, advance=advance)
    rows = pack([len(one) for one in sequences], row_tokens)
    found: list[tuple[int, Any]] = []
    at_once = rows_at_once * engine.data_size
    for start in range(0, len(rows), at_once):
        first = start + engine.data_rank * rows_at_once
        mine = rows[first : first + rows_at_once]
        batch, places = _batch_of(sequences, mine, rows_at_once=rows_at_once, row_tokens=row_tokens)
        values = engine.token_values(batch)  # (rows, t) or (rows, t, c)
        _, at_row, at_last = np.array(places, dtype=np.int64).reshape(-1, 3).T
        ends = values[torch.from_numpy(at_row), torch.from_numpy(at_last)].double().cpu().numpy()
        found += [(number, end) for (number, _, _), end in zip(places, ends, strict=True)]
        advance(sum(map(len, rows[start : start + at_once])))
    everyone: list[list[Any]] = engine.all_gather_objects(found)  # ranks of one data rank give the same numbers
    by_number = {number: score for of_rank in everyone for number, score in of_rank}
    return np.array([by_number[number] for number in range(len(sequences))], dtype=np.float64)


def _score_without_rows(
    scorer: SequenceScorer, sequences: Sequence[Ints], *, batch_tokens: int, advance: Callable[[int], None]
) -> Floats:
    found = []
    for batch in pack([len(one) for one in sequences], batch_tokens):
        found.append(scorer.sequence_values([sequences[number] for number in batch]).double().cpu().numpy())
        advance(len(batch))
    return np.concatenate(found) if found else np.zeros(0)


def pack(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """The sequences of each row, by number: as many consecutive ones as fit."""
    rows: list[list[int]] = []
    room = 0
    for number, length in enumerate(lengths):
        assert 0 < length <= row_tokens, f"sequence {number} has {length} tokens, a row {row_tokens}"
        if length > room:
            rows.append([])
            room = row_tokens
        rows[-1].append(number)
        room -= length
    return rows


def _batch_of(
    sequences: Sequence[Ints], rows: Sequence[Sequence[int]], *, rows_at_once: int, row_tokens: int
) -> tuple[Batch, list[tuple[int, int, int]]]:
    """The batch of some rows, with empty ones behind; and of each sequence (number, row, index of its last token)."""
    tokens = np.zeros((rows_at_once, row_tokens), dtype=np.int64)
    segments = np.full_like(tokens, PADDING)
    places = [*_places(sequences, rows)]
    for number, row, last in places:
        span = slice(last + 1 - len(sequences[number]), last + 1)
        tokens[row, span] = sequences[number]
        segments[row, span] = number - rows[row][0]
    segment_ids = torch.from_numpy(segments)
    targets = torch.full((rows_at_once, 1), IGNORE)
    return Batch(
        torch.from_numpy(tokens), targets, positions=positions_of(segment_ids), segment_ids=segment_ids
    ), places


def _places(sequences: Sequence[Ints], rows: Sequence[Sequence[int]]) -> Iterator[tuple[int, int, int]]:
    for row, numbers in enumerate(rows):
        end = 0
        for number in numbers:
            end += len(sequences[number])
            yield number, row, end - 1
