"""Reads and writes Megatron's `.bin/.idx` token files byte for byte; never tokenizes, shuffles or packs.

`.bin` holds the token ids of all sequences one after another, little-endian, without a header. `.idx` says where they
begin: magic, version, dtype code, sequence count S, document count D, then lengths i32[S], byte offsets i64[S] and
document starts i64[D] (the first 0, the last S). We write one sequence a document, so D = S + 1.
Layout: Megatron-LM, megatron/core/datasets/indexed_dataset.py. Our checksums lie in `.sums`
(gpt/token_files/checksums.py), which Megatron ignores: if present, every read is checked.
"""

import bisect
import hashlib
import itertools
import os
import re
import secrets
from array import array
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt.errors import ConfigError
from gpt.token_files.bin_reader import StoredTokens
from gpt.token_files.checksums import SummedFile, damaged_blocks, open_sums, sums_of_file, sums_path, write_sums
from gpt.token_files.index import DTYPES, HEADER, MAGIC, Shard, write_index

__all__ = ["DTYPES", "HEADER", "MAGIC", "TokenFile", "TokenFileWriter"]

_SUFFIXES = (".bin", ".idx", ".sums")
_SAMPLES, _SAMPLE_BYTES = 16, 4096  # part of the format of corpus.json: a change makes every corpus look damaged


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16 below 65,500 tokens, else int32: Megatron-core's own rule, so that its readers choose the same."""
    return np.dtype("<u2") if vocab_size < 65500 else np.dtype("<i4")


class TokenFileWriter:
    """Writes `prefix.bin`, `prefix.idx` and `prefix.sums`, which appear together when the block ends without an error.

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
        self._stem = prefix.with_name(f".{prefix.name}.{secrets.token_hex(6)}")
        self._bin: SummedFile | None = None

    @property
    def n_documents(self) -> int:
        """Documents added so far."""
        return len(self._lengths)

    def __enter__(self) -> "TokenFileWriter":
        self.prefix.parent.mkdir(parents=True, exist_ok=True)
        self._bin = SummedFile(self._temporary(".bin"))  # closed in __exit__
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
        self._bin.write(np.ascontiguousarray(ids, dtype=self.dtype))
        self._lengths.frombytes(np.ascontiguousarray(lengths).data.cast("B"))
        self.n_tokens += int(ids.size)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._bin is not None
        with ExitStack() as at_end:
            for suffix in _SUFFIXES:
                at_end.callback(self._temporary(suffix).unlink, missing_ok=True)
            at_end.push(self._bin)
            if kind is None:
                self._finish(self._bin)

    def _finish(self, tokens: SummedFile) -> None:
        tokens.sync()
        with SummedFile(self._temporary(".idx")) as index:
            write_index(index, self._lengths, self.dtype)
            index.sync()
        write_sums(self._temporary(".sums"), tokens.sums, index.sums, bin_bytes=tokens.n_bytes, idx_bytes=index.n_bytes)
        sums_path(self.prefix).unlink(missing_ok=True)  # or, after a crash, they were for a while those of other files
        for suffix in _SUFFIXES:
            os.replace(self._temporary(suffix), f"{self.prefix}{suffix}")
        _sync_folder(self.prefix.parent)

    def _temporary(self, suffix: str) -> Path:
        return self._stem.with_name(f"{self._stem.name}{suffix}.tmp")


class TokenFile:
    """Token ids of a corpus, read in place: opening costs the same for a thousand tokens and for a trillion.

    `prefix` is the path without `.bin` or `.idx`; a set of shards that `shard_prefixes` finds is read as one stream, at
    a cost in memory and time to open that follows the number of shards alone. Raises ConfigError when a file is
    missing, is not of this format, when the sizes of the two do not agree, or when shards differ in their type of ids;
    DamagedTokens, also from later reads, when what is read is not what `.sums` says.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = Path(prefix)
        self._shards = [Shard(path) for path in shard_prefixes(self.prefix)]
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

    @property
    def unchecked(self) -> list[Path]:
        """The prefixes without `.sums`: nothing notices when their tokens are damaged."""
        return [shard.prefix for shard in self._shards if shard.sums is None]

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


def make_sums(prefix: Path) -> None:
    """Write `.sums` beside one pair of token files, of what they hold now, once they have been found to be a pair."""
    Shard(prefix, compare=False)
    paths = [Path(f"{prefix}{suffix}") for suffix in (".bin", ".idx")]
    sizes = [path.stat().st_size for path in paths]
    temporary = prefix.with_name(f".{prefix.name}.{secrets.token_hex(6)}.sums.tmp")
    try:
        write_sums(temporary, *map(sums_of_file, paths), bin_bytes=sizes[0], idx_bytes=sizes[1])
        os.replace(temporary, sums_path(prefix))
        _sync_folder(prefix.parent)
    finally:
        temporary.unlink(missing_ok=True)


def compare_sums(prefix: Path) -> list[str] | None:
    """A line for each block of one pair that is not what `.sums` says; None where there is none. Reads all of both."""
    try:
        sums = open_sums(prefix)
    except ConfigError as error:
        return [str(error)]
    return None if sums is None else [str(found) for file in sums.files.values() for found in damaged_blocks(file)]


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


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
