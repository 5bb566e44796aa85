"""Write one token file of the corpus, a range of the shuffled order, from the token ids of all shards.

Documents are ordered by a hash of their ids, from 0 to 2^64 - 1. The files of a split are ranges of equal length of
these numbers. The file of a document, and its position in it, therefore depend only on its id and on the number of
files. A file's task reads only its part of every shard, so all tasks together read every token once. No task holds a
whole file.
"""

import bisect
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.corpus.tokenize import ROW, blocks, gather
from data_prep.documents.arrays import write_array
from data_prep.execution.tasks import Stage, TaskResult
from gpt.token_files.files import TokenFileWriter, sampled_digest, token_dtype

FILE_ENDINGS = (".bin", ".idx", ".sums", ".counts.npy")  # of a task's outputs
_BLOCK_TOKENS = 1 << 25  # to read and write at a time: 64 MiB of uint16, twice
_COUNTED_TOKENS = 1 << 22


@dataclass(frozen=True)
class FileTask:
    """File number `number` of `n_files` of a split."""

    validation: bool
    number: int
    n_files: int
    vocab_size: int

    @property
    def first(self) -> int:
        """The smallest number in the order (0 to 2^64) that belongs to the file."""
        return -(-(self.number << 64) // self.n_files)

    @property
    def end(self) -> int:
        """The smallest number that belongs to the next file."""
        return -(-((self.number + 1) << 64) // self.n_files)


def write_file(config: FileTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: (.tokens and rows of every shard in turn) to (.bin, .idx, .sums, counts of the token ids).

    Facts: tokens, documents, and bytes and digests of the first three. Memory: about 100 bytes per document of this
    file and two blocks of tokens.
    """
    token_paths, row_paths = inputs[0::2], inputs[1::2]
    dtype = token_dtype(config.vocab_size)
    tables = [read_part(path, config) for path in row_paths]
    source = np.repeat(np.arange(len(tables), dtype=np.uint32), [len(table) for table in tables])
    rows = np.concatenate([np.empty(0, dtype=ROW), *tables])
    order = np.lexsort((rows["text"], rows["order"]))
    rows, source = rows[order], source[order]
    counts = np.zeros(config.vocab_size, dtype=np.int64)
    with TokenFileWriter(outputs[0].with_suffix(""), vocab_size=config.vocab_size) as writer:
        for block in blocks(rows["length"], _BLOCK_TOKENS):
            ids = _read_block(token_paths, rows[block], source[block], dtype)
            writer.add_documents(ids, rows["length"][block])
            for start in range(0, len(ids), _COUNTED_TOKENS):  # bincount copies to 64 bits
                counts += np.bincount(ids[start : start + _COUNTED_TOKENS], minlength=config.vocab_size)
    write_array(outputs[3], counts)
    files = {path.suffix[1:]: describe_file(path) for path in outputs[:3]}
    return TaskResult([], {"tokens": writer.n_tokens, "documents": writer.n_documents, **files})


def read_part(path: Path, config: FileTask) -> npt.NDArray[Any]:
    """Read the rows of one shard that belong to the file: a slice, found by two binary searches on disk."""
    rows = np.load(path, mmap_mode="r", allow_pickle=False)

    def key(i: int) -> tuple[bool, int]:
        return bool(rows[i]["validation"]), int(rows[i]["order"])

    first, end = (
        bisect.bisect_left(range(len(rows)), (config.validation, order), key=key)
        for order in (config.first, config.end)
    )
    return np.array(rows[first:end])


def describe_file(path: Path) -> dict[str, Any]:
    """Compute bytes, sha256 and sampled digest of a file, as corpus.json has them."""
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": sha256, "sampled_sha256": sampled_digest(path)}


def _read_block(
    paths: Sequence[Path], rows: npt.NDArray[Any], source: npt.NDArray[np.uint32], dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """Join the ids of the documents in `rows`. The ranges of one shard are adjacent there, so each shard is read
    once."""
    by_shard = np.argsort(source, kind="stable")
    edges = [0, *(np.flatnonzero(np.diff(source[by_shard])) + 1).tolist(), len(rows)]
    tokens = np.empty(int(rows["length"].sum(dtype=np.int64)), dtype=dtype)
    starts = np.empty(len(rows), dtype=np.int64)  # of each document in `tokens`
    n_read = 0
    for first, end in itertools.pairwise(edges):
        own = by_shard[first:end]
        begin = int(rows["start"][own[0]])
        stop = int(rows["start"][own[-1]]) + int(rows["length"][own[-1]])
        _read_tokens(paths[int(source[own[0]])], begin, tokens[n_read : n_read + stop - begin])
        starts[own] = rows["start"][own] - begin + n_read
        n_read += stop - begin
    return gather(tokens, starts, rows["length"])


def _read_tokens(path: Path, start: int, into: npt.NDArray[Any]) -> None:
    with open(path, "rb") as file:
        file.seek(start * into.itemsize)
        n_bytes = file.readinto(into.view(np.uint8).data)
    assert n_bytes == into.nbytes, f"{path} ends after {n_bytes} of the {into.nbytes} bytes from token {start}"


WRITE = Stage("write_corpus", write_file)
