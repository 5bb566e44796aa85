"""Rankings in token files: a document is a prompt with all its completions, and the stream `marks` says where they end.

A document is K whole conversations, one after the other. `marks` is 0, except on the last token of each conversation,
where it is 1 + level. Level 0 is the worst, and equal levels are ties. A new sequence begins after each mark.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt.data.sampling import CorpusFiles, Samples
from gpt.errors import ConfigError
from gpt.losses.marks import IGNORE, PADDING
from gpt.token_files.files import TokenFile

MARKS = "marks"
_CHUNK_TOKENS = 1 << 24  # of a stream at a time, when all its marks are looked up
_MIN_SLOTS, _TOKENS_PER_SLOT = 64, 8

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class RankedRows:
    """The completions of n rows, in c slots each. All shapes depend on seq_len alone.

    `sequences` (n, t): a number for each conversation of a row, PADDING behind the last. `ends` (n, c): the position of
    each completion's last token, 0 in empty slots. `levels` (n, c): its level, IGNORE in empty slots. `prompts` (n, c):
    the number of its prompt in the row, PADDING in empty slots.
    """

    sequences: Tensor
    ends: Tensor
    levels: Tensor
    prompts: Tensor

    @property
    def extra(self) -> Mapping[str, Tensor]:
        """The tensors that a loss finds in `batch.extra`."""
        return MappingProxyType({"ends": self.ends, "prompts": self.prompts})


def slots(seq_len: int) -> int:
    """The most completions in a row. Batches need one shape, and the pairs of 64 slots cost next to nothing."""
    return max(_MIN_SLOTS, seq_len // _TOKENS_PER_SLOT)


def ranked_rows(samples: Samples) -> RankedRows:
    """The completions in samples of up to t = seq_len tokens. The last of the seq_len + 1 tokens is left out."""
    if samples.segment_ids is None:
        raise _by_window()
    documents = torch.from_numpy(samples.segment_ids)[:, :-1]  # (n, t)
    marks = torch.from_numpy(samples.streams[MARKS])[:, :-1].masked_fill(documents == PADDING, 0)  # (n, t)
    ended = (marks > 0).cumsum(1)  # (n, t) marks up to here
    sequences = (documents + ended - (marks > 0).long()).masked_fill(documents == PADDING, PADDING)
    c = slots(marks.size(1))
    rows, columns = (marks > 0).nonzero(as_tuple=True)
    slot = ended[rows, columns] - 1
    rows, columns, slot = (index[slot < c] for index in (rows, columns, slot))  # more are refused, see check_rankings
    empty = torch.zeros(len(marks), c, dtype=torch.int64)
    ends, levels, prompts = empty, torch.full_like(empty, IGNORE), torch.full_like(empty, PADDING)
    ends[rows, slot], levels[rows, slot] = columns, marks[rows, columns] - 1
    prompts[rows, slot] = documents[rows, columns]
    return RankedRows(sequences, ends, levels, prompts)


def check_rankings(files: CorpusFiles, *, n_ctx: int) -> list[str]:
    """Warnings about a corpus of rankings, such as prompts without a pair. Reads the whole stream `marks`.

    ConfigError: it is sampled by window, a prompt's completions do not fit into a row, a conversation is longer
    than `n_ctx` tokens, or nothing is ranked.
    """
    seq_len = files.sampling.seq_len
    if not files.sampling.may_be_short:  # windows
        raise _by_window()
    borders = files.tokens.document_starts()
    positions, values = find_marks(files.streams[MARKS])
    document = np.searchsorted(borders, positions, side="right") - 1  # of each mark
    _check_lengths(files, borders, positions, document, n_ctx=n_ctx)
    spans = np.array([files.span(i) for i in range(files.n_samples)], dtype=np.int64)  # (samples, 2)
    n_completions = np.diff(np.searchsorted(positions, spans), axis=1)
    if n_completions.max() > (most := slots(seq_len)):
        raise ConfigError(
            f"corpus '{files.name}': {n_completions.max()} completions in a row are invalid: at most {most} fit with "
            f"data.seq_len = {seq_len}. Use data.seq_len = {_TOKENS_PER_SLOT * int(n_completions.max())}, or leave "
            f"completions out"
        )
    return _describe_pairs(files, document, values)


def _by_window() -> ConfigError:
    return ConfigError(
        "data.sampling = 'window' is invalid for rankings: a row must hold a prompt with all its completions. Use "
        "'document' or 'packed'"
    )


def find_marks(file: TokenFile) -> tuple[Ints, Ints]:
    """The positions in the stream and the values of all marks. Memory grows with their number."""
    positions, values = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for start in range(0, file.n_tokens, _CHUNK_TOKENS):
        part = file.read(start, min(start + _CHUNK_TOKENS, file.n_tokens))
        found = np.flatnonzero(part)
        positions.append(found + start)
        values.append(part[found].astype(np.int64))
    return np.concatenate(positions), np.concatenate(values)


def _check_lengths(files: CorpusFiles, borders: Ints, positions: Ints, document: Ints, *, n_ctx: int) -> None:
    """ConfigError if a document is too long for a row, does not end with a mark, or has too long a conversation."""
    lengths, seq_len = np.diff(borders), files.sampling.seq_len
    if lengths.max(initial=0) > seq_len:
        raise ConfigError(
            f"data.seq_len = {seq_len} is invalid: in corpus '{files.name}', document {lengths.argmax()} is a prompt "
            f"with completions of {lengths.max()} tokens together, and a row must hold them all. Use data.seq_len = "
            f"{lengths.max()} or more, or leave completions out"
        )
    unmarked = np.setdiff1d(borders[1:][lengths > 0] - 1, positions)
    if len(unmarked):
        at = np.searchsorted(borders, unmarked[0], side="right") - 1
        raise ConfigError(
            f"corpus '{files.name}', stream '{MARKS}': document {at} has no mark on its last token. Prepare the "
            f"rankings again"
        )
    starts = borders[document]
    follows = np.flatnonzero(np.diff(document) == 0) + 1  # marks after another one in the same document
    starts[follows] = positions[follows - 1] + 1
    tokens = positions - starts + 1
    if tokens.max(initial=0) > n_ctx:
        raise ConfigError(
            f"corpus '{files.name}': document {document[tokens.argmax()]} has a conversation of {tokens.max()} tokens, "
            f"which is invalid: model.n_ctx = {n_ctx} is the longest. Prepare the "
            f"rankings with conversations.max_tokens = {n_ctx}, or use a model with a longer context"
        )


def _describe_pairs(files: CorpusFiles, document: Ints, values: Ints) -> list[str]:
    """A warning if some prompts have no pair of different levels. ConfigError if none has one."""
    n = files.tokens.n_documents
    completions = np.bincount(document, minlength=n)
    best, worst = np.zeros(n, dtype=np.int64), np.full(n, np.iinfo(np.int64).max)
    np.maximum.at(best, document, values)
    np.minimum.at(worst, document, values)
    useless = (completions < 2) | (best == worst)
    if not useless.any():
        return []
    single = int((completions < 2).sum())
    why = f"{single:,} with fewer than two completions, {int(useless.sum()) - single:,} with ties only"
    if useless.all():
        raise ConfigError(
            f"corpus '{files.name}' has no pair to learn from in {n:,} prompts ({why}). Use rankings of at least two "
            f"completions that differ"
        )
    return [f"corpus '{files.name}': {int(useless.sum()):,} of {n:,} prompts have no pair and teach nothing ({why})"]
