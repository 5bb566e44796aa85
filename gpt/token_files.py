"""Reads and writes Megatron's `.bin/.idx` token files byte for byte; never tokenizes, shuffles or packs.

`.bin` holds the token ids of all sequences one after another, little-endian, without a header. `.idx` says where they
begin: magic, version, dtype code, sequence count S, document count D, then lengths i32[S], byte offsets i64[S] and
document starts i64[D] (the first 0, the last S). We write one sequence a document, so D = S + 1.
Layout: Megatron-LM, megatron/core/datasets/indexed_dataset.py.
"""

import bisect
import hashlib
import itertools
import os
import re
import struct
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from gpt.errors import ConfigError
from gpt.stored_tokens import StoredTokens

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
_SAMPLES, _SAMPLE_BYTES = 16, 4096  # part of the format of corpus.json: a change makes every corpus look damaged
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
        values = np.asarray(ids)
        if values.ndim != 1 or (values.size and not np.issubdtype(values.dtype, np.integer)):
            raise ConfigError(
                f"{self.prefix}.bin: a document must be a flat array of integers, not {values.dtype} {values.shape}"
            )
        if values.size > 2**31 - 1:
            raise ConfigError(f"{self.prefix}.bin: a document of {values.size:,} tokens is above the format's 2^31-1")
        self.add_documents(values, np.array([values.size], dtype=np.int32))

    def add_documents(self, ids: npt.NDArray[Any], lengths: npt.NDArray[np.int32]) -> None:
        """Append documents that lie one after another in ids (n,); their lengths (documents,) add up to n."""
        assert self._bin is not None, "add_documents outside the with block"
        assert lengths.dtype == np.int32, lengths.dtype
        assert int(lengths.sum(dtype=np.int64)) == ids.size, f"{ids.size} ids in documents of {lengths.sum()}"
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= self.vocab_size):
            place = int(np.argmax((ids < 0) | (ids >= self.vocab_size)))
            document = len(self._lengths) + int(np.searchsorted(np.cumsum(lengths), place, side="right"))
            raise ConfigError(
                f"{self.prefix}.bin: token id {ids[place]} in document {document} is outside the vocabulary, "
                f"0..{self.vocab_size - 1}; the tokenizer does not match vocab_size = {self.vocab_size}"
            )
        self._bin.write(np.ascontiguousarray(ids, dtype=self.dtype).data)
        self._lengths.frombytes(np.ascontiguousarray(lengths).data.cast("B"))
        self.n_tokens += int(ids.size)

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

    `prefix` is the path without `.bin` or `.idx`; a set of shards that `shard_prefixes` finds is read as one stream, at
    a cost in memory and time to open that follows the number of shards alone. Raises ConfigError when a file is
    missing, is not of this format, when the sizes of the two do not agree, or when shards differ in their type of ids.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = Path(prefix)
        self._shards = [_Shard(path) for path in shard_prefixes(self.prefix)]
        self.dtype = self._shards[0].dtype
        for shard in self._shards:
            if shard.dtype != self.dtype:
                raise ConfigError(
                    f"{shard.prefix}.idx: ids of type {shard.dtype}, but {self._shards[0].prefix.name}.idx has "
                    f"{self.dtype}; the shards are not of one corpus"
                )
        # Of each shard, its first token and first document in the stream; then the totals.
        self._token_starts = [0, *itertools.accumulate(shard.n_tokens for shard in self._shards)]
        self._document_starts = [0, *itertools.accumulate(shard.n_documents for shard in self._shards)]
        self.n_tokens, self.n_documents = self._token_starts[-1], self._document_starts[-1]

    def __reduce__(self) -> tuple[type["TokenFile"], tuple[Path]]:
        return TokenFile, (self.prefix,)  # a loader's worker process opens the files anew

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Tokens start..stop-1 of all documents taken as one stream, a copy of shape (stop - start,)."""
        if not 0 <= start <= stop <= self.n_tokens:
            raise ConfigError(f"{self.prefix}.bin holds tokens 0..{self.n_tokens}; asked for {start}..{stop}")
        pieces = [tokens.read(first, end) for tokens, first, end in self._pieces(start, stop)]
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, dtype=self.dtype), *pieces])

    def announce(self, start: int, stop: int) -> None:
        """Have the system fetch these tokens in the background, for a later `read`."""
        for tokens, first, end in self._pieces(start, stop):
            tokens.announce(first, end)

    def _pieces(self, start: int, stop: int) -> list[tuple[StoredTokens, int, int]]:
        """The files that hold tokens start..stop-1, each with the range in it."""
        number, pieces = self._shard_of(start), []
        while start < stop:
            first, end = self._token_starts[number], min(stop, self._token_starts[number + 1])
            pieces.append((self._shards[number].tokens, start - first, end - first))
            start, number = end, number + 1
        return pieces

    def document_at(self, position: int) -> tuple[int, int]:
        """(document, offset in it) of a token position; a binary search in the mapped index, O(log documents)."""
        if not 0 <= position < self.n_tokens:
            raise ConfigError(f"{self.prefix}.bin holds tokens 0..{self.n_tokens}; asked for token {position}")
        number = self._shard_of(position)
        shard, offset = self._shards[number], position - self._token_starts[number]
        after = bisect.bisect_right(range(shard.n_documents), offset, key=shard.document_start)
        return self._document_starts[number] + after - 1, offset - shard.document_start(after - 1)

    def document_start(self, document: int) -> int:
        """Position of a document's first token; `n_documents` gives the end of the stream."""
        number = min(bisect.bisect_right(self._document_starts, document), len(self._shards)) - 1
        return self._token_starts[number] + self._shards[number].document_start(
            document - self._document_starts[number]
        )

    def bin_path(self, position: int) -> Path:
        """The file that holds a token position, for messages."""
        return Path(f"{self._shards[self._shard_of(position)].prefix}.bin")

    def _shard_of(self, position: int) -> int:
        """The shard that holds a position; an empty one holds none."""
        return min(bisect.bisect_right(self._token_starts, position), len(self._shards)) - 1


def shard_prefixes(prefix: Path) -> list[Path]:
    """What `prefix` stands for: itself where there is such a pair of files, else the set `prefix-00000-of-NNNNN` on.

    Raises ConfigError, naming the file, when there is neither, when there are both or two sets, and when a set lacks a
    file.
    """
    prefix = Path(prefix)
    single = [path for suffix in (".bin", ".idx") if (path := Path(f"{prefix}{suffix}")).is_file()]
    pattern = re.compile(re.escape(prefix.name) + r"-(\d{5,})-of-(\d{5,})\.(?:bin|idx)")
    names = sorted(path.name for path in prefix.parent.iterdir()) if prefix.parent.is_dir() else []
    sets = {found[2] for name in names if (found := pattern.fullmatch(name))}
    if not sets:
        return [prefix]
    kinds = [path.name for path in single[:1]] + [f"{prefix.name}-00000-of-{size}" for size in sorted(sets)]
    if len(kinds) > 1:
        raise ConfigError(
            f"{prefix}: {' and '.join(kinds)} are token files of two corpora; name one, or remove those of the other"
        )
    size = sets.pop()
    prefixes = [prefix.with_name(f"{prefix.name}-{number:05d}-of-{size}") for number in range(int(size))]
    present = set(names)
    for path in prefixes:
        for suffix in (".bin", ".idx"):
            if f"{path.name}{suffix}" not in present:
                raise ConfigError(f"{path}{suffix}: no such file; the set of {int(size)} shards is not complete")
    return prefixes


class _Shard:
    """One open pair of files; `tokens` are all its ids."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        index_path, bin_path = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
        for path in (index_path, bin_path):
            if not path.is_file():
                raise ConfigError(
                    f"{path}: no such token file; a corpus is a pair of files {prefix}.bin and {prefix}.idx, or a set "
                    f"of them, {prefix}-00000-of-NNNNN and so on"
                )
        code, n_sequences, n_document_marks = _read_header(index_path)
        self.dtype: np.dtype[Any] = np.dtype(DTYPES[code]).newbyteorder("<")
        _check_size(index_path, HEADER.size + 12 * n_sequences + 8 * n_document_marks, index_path)
        index = np.asarray(np.memmap(index_path, dtype=np.uint8, mode="r"))  # a memmap proper is slow to slice
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
        self.tokens = StoredTokens(bin_path, self.dtype)

    def document_start(self, document: int) -> int:
        """Position of a document's first token; `n_documents` gives the end."""
        sequence = int(self._documents[document])
        return int(self._pointers[sequence]) // self.dtype.itemsize if sequence < len(self._pointers) else self.n_tokens


def sampled_digest(path: Path) -> str:
    """sha256 of a file's length and of 16 blocks of 4 KiB spread evenly over it, the first and last among them.

    Costs the same for every size. It notices another file, another length and damage of more than a 15th of the
    length; a single wrong byte only inside those blocks.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for i in range(_SAMPLES):
            file.seek(max(size - _SAMPLE_BYTES, 0) * i // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


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
