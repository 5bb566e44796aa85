"""Read and write the index PREFIX.idx of one pair of token files: the positions of the documents in PREFIX.bin.

Layout: Megatron-LM, megatron/core/datasets/indexed_dataset.py, as described in gpt/token_files/files.py.
"""

import struct
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt.errors import ConfigError
from gpt.files.regular import open_regular
from gpt.token_files.bin_reader import StoredTokens
from gpt.token_files.checksums import BLOCK_BYTES, DamagedTokens, SummedFile, open_sums

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, documents: 34 bytes
DTYPES: dict[int, type[np.integer[Any]]] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    8: np.uint16,
}
_CHUNK = 1 << 20  # documents per block when the index is written: limits memory to 8 MiB


class MissingTokenFile(ConfigError):
    """A corpus has no token files of the name `prefix`."""

    def __init__(self, path: Path, prefix: Path) -> None:
        super().__init__(
            f"{path}: no such token file; a corpus is a pair of files {prefix}.bin and {prefix}.idx, or a set of pairs "
            f"from {prefix}-00000-of-NNNNN on"
        )
        self.prefix = prefix


class Shard:
    """One open pair of files. `tokens`: all its ids. `sums`: the checksums for every read, if they exist and `compare`.

    ConfigError: a file is missing, has another format, or the sizes of the two do not agree.
    """

    def __init__(self, prefix: Path, *, compare: bool = True) -> None:
        self.prefix = prefix
        index_path, bin_path = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
        for path in (index_path, bin_path):
            if not path.is_file():
                raise MissingTokenFile(path, prefix)
        self.sums = open_sums(prefix) if compare else None
        self._index_sums = None if self.sums is None else self.sums.files[".idx"]
        if self._index_sums is not None:
            with open_regular(index_path) as file:
                self._index_sums.check(0, file.read(BLOCK_BYTES))
        code, n_sequences, n_document_marks = _read_header(index_path)
        self.dtype: np.dtype[Any] = np.dtype(DTYPES[code]).newbyteorder("<")
        _check_size(index_path, HEADER.size + 12 * n_sequences + 8 * n_document_marks, index_path)
        # asarray: slicing an np.memmap is slow
        self._index = index = np.asarray(np.memmap(index_path, dtype=np.uint8, mode="r"))
        lengths_end = self._lengths_end = HEADER.size + 4 * n_sequences
        self._lengths = index[HEADER.size : lengths_end].view("<i4")  # (S,)
        pointers_end = self._pointers_end = lengths_end + 8 * n_sequences
        self._pointers = index[lengths_end:pointers_end].view("<i8")  # (S,) byte offsets into .bin
        self._documents = index[pointers_end:].view("<i8")  # (D,) first sequence of each document, then S
        self._check_index(pointers_end, pointers_end + 8)
        self._check_index(len(index) - 8, len(index))
        if int(self._documents[0]) != 0 or int(self._documents[-1]) != n_sequences:
            raise ConfigError(
                f"{index_path}: document marks run from {self._documents[0]} to {self._documents[-1]}, "
                f"not from 0 to its {n_sequences} sequences: the file is damaged. Write it again."
            )
        if n_sequences:
            self._check_index(lengths_end - 4, lengths_end)
            self._check_index(pointers_end - 8, pointers_end)
        end = int(self._pointers[-1]) + int(self._lengths[-1]) * self.dtype.itemsize if n_sequences else 0
        _check_size(bin_path, end, index_path)
        self.n_tokens = end // self.dtype.itemsize
        self.n_documents = n_document_marks - 1
        self.tokens = StoredTokens(bin_path, self.dtype, None if self.sums is None else self.sums.files[".bin"])

    def document_start(self, document: int) -> int:
        """Return the position of a document's first token; `n_documents` gives the end.

        DamagedTokens: a checksum differs, or the position is none in the file.
        """
        mark = self._pointers_end + 8 * document
        self._check_index(mark, mark + 8)
        sequence = int(self._documents[document])
        if sequence == len(self._pointers):
            return self.n_tokens
        if not 0 <= sequence < len(self._pointers):
            raise self._misplaced(document)
        pointer = self._lengths_end + 8 * sequence
        self._check_index(pointer, pointer + 8)
        position = int(self._pointers[sequence]) // self.dtype.itemsize
        if not 0 <= position <= self.n_tokens:
            raise self._misplaced(document)
        return position

    def document_starts(self) -> npt.NDArray[np.int64]:
        """Return the position of each document's first token, and the end, (n_documents + 1,). Reads the whole index.

        DamagedTokens: a checksum differs, or the positions do not rise within the file.
        """
        self._check_index(self._lengths_end, len(self._index))
        documents, n_sequences = self._documents, len(self._pointers)
        starts = np.append(self._pointers // self.dtype.itemsize, self.n_tokens)
        misplaced = (documents < 0) | (documents > n_sequences)
        if not misplaced.any():
            starts = starts[documents].astype(np.int64)
            misplaced[:-1] = (starts[1:] < starts[:-1]) | (starts[:-1] < 0)
        if misplaced.any():
            raise self._misplaced(int(misplaced.argmax()))
        return starts

    def _misplaced(self, document: int) -> DamagedTokens:
        return DamagedTokens(f"{self.prefix}.idx: document {document:,} does not begin in the file: it is damaged")

    def _check_index(self, start: int, stop: int) -> None:
        """Compare the blocks of the index with bytes start..stop-1 with their checksums."""
        if self._index_sums is not None:
            first, end = self._index_sums.blocks_around(start, stop)
            self._index_sums.check(first, self._index[first:end])


def _read_header(path: Path) -> tuple[int, int, int]:
    with open_regular(path) as file:
        head = file.read(HEADER.size)
    if len(head) < HEADER.size:
        raise ConfigError(
            f"{path}: {len(head)} bytes are too few for a token index, whose header alone has {HEADER.size}"
        )
    magic, version, code, n_sequences, n_document_marks = HEADER.unpack(head)
    if magic != MAGIC:
        raise ConfigError(f"{path} is not a Megatron token index: it begins with {magic!r}, not with {MAGIC!r}")
    if version != 1:
        raise ConfigError(f"{path}: version {version} of the token index is not supported; version 1 is")
    if code not in DTYPES:
        raise ConfigError(f"{path}: dtype code {code} is not an integer type. Supported codes: {sorted(DTYPES)}")
    if n_document_marks < 1:
        raise ConfigError(f"{path}: document count 0; an index has at least the first 0")
    return code, n_sequences, n_document_marks


def _check_size(path: Path, expected_bytes: int, index_path: Path) -> None:
    actual_bytes = path.stat().st_size
    if actual_bytes != expected_bytes:
        raise ConfigError(
            f"{path}: {actual_bytes:,} bytes, but {index_path.name} says {expected_bytes:,}: "
            "one of the two files is damaged or from another corpus. Copy or write both again."
        )


def write_index(file: SummedFile, lengths: "array[int]", dtype: np.dtype[Any]) -> None:
    """Write the index of documents with these lengths, one sequence each, which follow one another."""
    code = next(code for code, kind in DTYPES.items() if np.dtype(kind) == dtype.newbyteorder("="))
    n_documents = len(lengths)
    file.write(HEADER.pack(MAGIC, 1, code, n_documents, n_documents + 1))
    all_lengths = np.frombuffer(lengths, dtype=np.int32) if n_documents else np.empty(0, np.int32)
    for block in _blocks(all_lengths):
        file.write(block.astype("<i4").tobytes())
    start_bytes = 0
    for block in _blocks(all_lengths):
        ends = np.cumsum(block, dtype=np.int64) * dtype.itemsize
        file.write((np.concatenate(([0], ends[:-1])) + start_bytes).astype("<i8").tobytes())
        start_bytes += int(ends[-1])
    for first in range(0, n_documents + 1, _CHUNK):
        file.write(np.arange(first, min(first + _CHUNK, n_documents + 1), dtype="<i8").tobytes())


def _blocks(values: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    starts: Iterable[int] = range(0, len(values), _CHUNK)
    return (values[start : start + _CHUNK] for start in starts)
