"""Reads and writes Megatron's `.bin/.idx` token files byte for byte; never tokenizes, shuffles or packs.

`.bin` holds the token ids of all sequences one after another, little-endian, without a header. `.idx` says where they
begin: magic, version, dtype code, sequence count S, document count D, then lengths i32[S], byte offsets i64[S] and
document starts i64[D] (the first 0, the last S). We write one sequence a document, so D = S + 1.
Layout: Megatron-LM, megatron/core/datasets/indexed_dataset.py.
"""

import bisect
import os
import struct
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from gpt.errors import ConfigError

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
_CHUNK = 1 << 20  # documents per block when the index is written: bounds memory at 8 MiB whatever the corpus


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16 below 65,500 tokens, else int32: Megatron-core's own rule, so that its readers choose the same."""
    return np.dtype("<u2") if vocab_size < 65500 else np.dtype("<i4")


class TokenFileWriter:
    """Writes `prefix.bin` and `prefix.idx`, which appear together when the block ends without an error.

    with TokenFileWriter(Path("train"), vocab_size=50257) as writer:
        writer.add_document(ids)

    Memory: four bytes a document. Raises ConfigError for ids outside 0..vocab_size-1.
    """

    def __init__(self, prefix: Path, *, vocab_size: int) -> None:
        self.prefix = prefix
        self.vocab_size = vocab_size
        self.dtype = token_dtype(vocab_size)
        self.n_tokens = 0
        self._lengths = array("i")
        self._temporary = {s: prefix.with_name(f".{prefix.name}.{os.getpid()}{s}.tmp") for s in (".bin", ".idx")}
        self._bin: BinaryIO | None = None

    @property
    def n_documents(self) -> int:
        """Documents added so far."""
        return len(self._lengths)

    def __enter__(self) -> "TokenFileWriter":
        self.prefix.parent.mkdir(parents=True, exist_ok=True)
        self._bin = open(self._temporary[".bin"], "wb", buffering=1 << 20)  # closed in __exit__
        return self

    def add_document(self, ids: npt.ArrayLike) -> None:
        """Append one document, ids (n,) of any integer type; its end-of-document token is the caller's to add."""
        assert self._bin is not None, "add_document outside the with block"
        values = np.asarray(ids)
        if values.ndim != 1 or (values.size and not np.issubdtype(values.dtype, np.integer)):
            raise ConfigError(
                f"{self.prefix}.bin: a document must be a flat array of integers, not {values.dtype} {values.shape}"
            )
        if values.size > 2**31 - 1:
            raise ConfigError(f"{self.prefix}.bin: a document of {values.size:,} tokens is above the format's 2^31-1")
        if values.size and (int(values.min()) < 0 or int(values.max()) >= self.vocab_size):
            bad = int(values.max()) if int(values.max()) >= self.vocab_size else int(values.min())
            raise ConfigError(
                f"{self.prefix}.bin: token id {bad} in document {len(self._lengths)} is outside the vocabulary, "
                f"0..{self.vocab_size - 1}; the tokenizer does not match vocab_size = {self.vocab_size}"
            )
        self._bin.write(values.astype(self.dtype).tobytes())
        self._lengths.append(values.size)
        self.n_tokens += int(values.size)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._bin is not None
        try:
            if kind is None:
                _sync(self._bin)
                with open(self._temporary[".idx"], "wb", buffering=1 << 20) as index:
                    _write_index(index, self._lengths, self.dtype)
                    _sync(index)
                for suffix, temporary in self._temporary.items():
                    os.replace(temporary, f"{self.prefix}{suffix}")
                _sync_folder(self.prefix.parent)
        finally:
            try:
                self._bin.close()  # on a full disk this flushes, and fails, once more
            finally:
                for temporary in self._temporary.values():
                    temporary.unlink(missing_ok=True)


class TokenFile:
    """Token ids of a corpus, read in place: opening costs the same for a thousand tokens and for a trillion.

    `prefix` is the path without `.bin` or `.idx`. Raises ConfigError when a file is missing, is not of this format, or
    when the sizes of the two do not agree.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = Path(prefix)
        index_path, bin_path = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
        for path in (index_path, bin_path):
            if not path.is_file():
                raise ConfigError(
                    f"{path}: no such token file; a corpus is a pair of files {prefix}.bin and {prefix}.idx"
                )
        code, n_sequences, n_document_marks = _read_header(index_path)
        self.dtype: np.dtype[Any] = np.dtype(DTYPES[code]).newbyteorder("<")
        _check_size(index_path, HEADER.size + 12 * n_sequences + 8 * n_document_marks, index_path)
        index = np.memmap(index_path, dtype=np.uint8, mode="r")
        lengths_end = HEADER.size + 4 * n_sequences
        self._lengths = index[HEADER.size : lengths_end].view("<i4")  # (S,)
        pointers_end = lengths_end + 8 * n_sequences
        self._pointers = index[lengths_end:pointers_end].view("<i8")  # (S,) byte offsets into .bin
        self._documents = index[pointers_end:].view("<i8")  # (D,) first sequence of each document, then S
        if int(self._documents[0]) != 0 or int(self._documents[-1]) != n_sequences:
            raise ConfigError(
                f"{index_path}: document marks run from {self._documents[0]} to {self._documents[-1]}, "
                f"not from 0 to its {n_sequences} sequences: the file is damaged, write it again"
            )
        end = int(self._pointers[-1]) + int(self._lengths[-1]) * self.dtype.itemsize if n_sequences else 0
        _check_size(bin_path, end, index_path)
        self.n_tokens = end // self.dtype.itemsize
        self.n_documents = n_document_marks - 1
        empty = np.empty(0, dtype=self.dtype)  # a file of no bytes cannot be mapped
        self._tokens = np.memmap(bin_path, dtype=self.dtype, mode="r") if self.n_tokens else empty

    def __reduce__(self) -> tuple[type["TokenFile"], tuple[Path]]:
        return TokenFile, (self.prefix,)  # a loader's worker process maps the file anew instead of receiving a copy

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Tokens start..stop-1 of all documents taken as one stream, a copy of shape (stop - start,)."""
        if not 0 <= start <= stop <= self.n_tokens:
            raise ConfigError(f"{self.prefix}.bin holds tokens 0..{self.n_tokens}; asked for {start}..{stop}")
        return np.array(self._tokens[start:stop])

    def document_at(self, position: int) -> tuple[int, int]:
        """(document, offset in it) of a token position; a binary search in the mapped index, O(log documents)."""
        if not 0 <= position < self.n_tokens:
            raise ConfigError(f"{self.prefix}.bin holds tokens 0..{self.n_tokens}; asked for token {position}")
        after = bisect.bisect_right(range(self.n_documents), position, key=self.document_start)
        return after - 1, position - self.document_start(after - 1)

    def document_start(self, document: int) -> int:
        """Position of a document's first token; `n_documents` gives the end of the stream."""
        sequence = int(self._documents[document])
        return int(self._pointers[sequence]) // self.dtype.itemsize if sequence < len(self._pointers) else self.n_tokens


def _read_header(path: Path) -> tuple[int, int, int]:
    with open(path, "rb") as file:
        head = file.read(HEADER.size)
    if len(head) < HEADER.size:
        raise ConfigError(
            f"{path}: {len(head)} bytes are too few for a token index (its header alone has {HEADER.size})"
        )
    magic, version, code, n_sequences, n_document_marks = HEADER.unpack(head)
    if magic != MAGIC:
        raise ConfigError(f"{path}: not a Megatron token index (it begins with {magic!r}, expected {MAGIC!r})")
    if version != 1:
        raise ConfigError(f"{path}: version {version} of the token index is not known; only version 1 is")
    if code not in DTYPES:
        raise ConfigError(f"{path}: dtype code {code} is not a whole-number type; known: {sorted(DTYPES)}")
    if n_document_marks < 1:
        raise ConfigError(f"{path}: document count 0; an index has at least the leading 0")
    return code, n_sequences, n_document_marks


def _check_size(path: Path, expected_bytes: int, index_path: Path) -> None:
    actual_bytes = path.stat().st_size
    if actual_bytes != expected_bytes:
        raise ConfigError(
            f"{path}: {actual_bytes:,} bytes, but {index_path.name} says {expected_bytes:,}: "
            "one of the two files is damaged or from another corpus; copy or write both again"
        )


def _write_index(file: BinaryIO, lengths: "array[int]", dtype: np.dtype[Any]) -> None:
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


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
