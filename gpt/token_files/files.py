"""Read and write Megatron's `.bin/.idx` token files, byte for byte.

`.bin` has the token ids of all sequences one after another, little-endian, without a header. `.idx` has their starts:
magic, version, dtype code, sequence count S, document count D, then lengths i32[S], byte offsets i64[S] and document
starts i64[D] (the first is 0, the last is S). We write one sequence per document, so D = S + 1.
Layout: Megatron-LM, megatron/core/datasets/indexed_dataset.py. Our checksums are in `.sums`
(gpt/token_files/checksums.py), which Megatron ignores: if the file exists, every read is checked.
"""

import bisect
import hashlib
import itertools
import os
import re
import secrets
from array import array
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt.errors import ConfigError
from gpt.files.atomic import open_replacement, sync_file, sync_folder
from gpt.files.regular import open_regular
from gpt.token_files.bin_reader import StoredTokens
from gpt.token_files.checksums import SummedFile, damaged_blocks, open_sums, sums_of_file, sums_path, write_sums
from gpt.token_files.index import DTYPES, HEADER, MAGIC, Shard, write_index

__all__ = ["DTYPES", "HEADER", "MAGIC", "TokenFile", "TokenFileWriter"]

_SUFFIXES = (".bin", ".idx", ".sums")
_SAMPLES, _SAMPLE_BYTES = 16, 4096  # part of the format of corpus.json: with other values every corpus looks damaged


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return uint16 below 65,500 tokens, else int32: Megatron-core's rule, so that its readers choose the same."""
    return np.dtype("<u2") if vocab_size < 65500 else np.dtype("<i4")


class TokenFileWriter:
    """Write `prefix.bin`, `prefix.idx` and `prefix.sums`, which appear together when the block ends without an error.

    with TokenFileWriter(Path("train"), vocab_size=50257) as writer:
        writer.add_document(ids)

    Memory: four bytes per document. ConfigError: an id is outside 0..vocab_size-1.
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
        """Append one document, ids (n,) of any integer type. The caller adds the end-of-document token."""
        values = np.asarray(ids)
        if values.ndim != 1 or (values.size and not np.issubdtype(values.dtype, np.integer)):
            raise ConfigError(
                f"{self.prefix}.bin: a document must be a flat array of integers, not {values.dtype} {values.shape}"
            )
        if values.size > 2**31 - 1:
            raise ConfigError(f"{self.prefix}.bin: a document of {values.size:,} tokens is above the format's 2^31-1")
        self.add_documents(values, np.array([values.size], dtype=np.int32))

    def add_documents(self, ids: npt.NDArray[Any], lengths: npt.NDArray[np.int32]) -> None:
        """Append documents that follow one another in ids (n,). Their lengths (documents,) add up to n."""
        assert self._bin is not None, "add_documents outside the with block"
        assert lengths.dtype == np.int32, lengths.dtype
        assert int(lengths.sum(dtype=np.int64)) == ids.size, f"{ids.size} ids in documents of {lengths.sum()}"
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= self.vocab_size):
            index = int(np.argmax((ids < 0) | (ids >= self.vocab_size)))
            document = len(self._lengths) + int(np.searchsorted(np.cumsum(lengths), index, side="right"))
            raise ConfigError(
                f"{self.prefix}.bin: token id {ids[index]} in document {document} is outside the vocabulary, "
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
        with open(self._temporary(".sums"), "xb") as file:
            write_sums(file, tokens.sums, index.sums, bin_bytes=tokens.n_bytes, idx_bytes=index.n_bytes)
            sync_file(file)
        # Remove old checksums first: after a crash between the renames they would be next to files of another corpus.
        sums_path(self.prefix).unlink(missing_ok=True)
        for suffix in _SUFFIXES:
            os.replace(self._temporary(suffix), f"{self.prefix}{suffix}")
        sync_folder(self.prefix.parent)

    def _temporary(self, suffix: str) -> Path:
        return self._stem.with_name(f"{self._stem.name}{suffix}.tmp")


class TokenFile:
    """Token ids of a corpus, read in place: opening takes as long for a thousand tokens as for a trillion.

    `prefix` is the path without `.bin` or `.idx`. A set of shards that `shard_prefixes` finds is read as one stream;
    memory and time to open depend only on the number of shards. ConfigError: a file is missing or has another format,
    the sizes of the two files do not agree, or shards have different types of ids. DamagedTokens, also from later
    reads: a checksum differs from `.sums`.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = Path(prefix)
        self._shards = [Shard(path) for path in shard_prefixes(self.prefix)]
        self.dtype = self._shards[0].dtype
        for shard in self._shards:
            if shard.dtype != self.dtype:
                raise ConfigError(
                    f"{shard.prefix}.idx: ids of type {shard.dtype}, but {self._shards[0].prefix.name}.idx has "
                    f"{self.dtype}; the shards are not from one corpus"
                )
        # The first token and first document of each shard in the stream, then the totals.
        self._token_starts = [0, *itertools.accumulate(shard.n_tokens for shard in self._shards)]
        self._document_starts = [0, *itertools.accumulate(shard.n_documents for shard in self._shards)]
        self.n_tokens, self.n_documents = self._token_starts[-1], self._document_starts[-1]

    def __reduce__(self) -> tuple[type["TokenFile"], tuple[Path]]:
        return TokenFile, (self.prefix,)  # a data loader's worker process opens the files again

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Read tokens start..stop-1 of all documents as one stream, a copy of shape (stop - start,)."""
        if not 0 <= start <= stop <= self.n_tokens:
            raise ConfigError(f"{self.prefix}.bin has {self.n_tokens} tokens; {start}..{stop} are outside")
        parts = [tokens.read(first, end) for tokens, first, end in self._ranges(start, stop)]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, dtype=self.dtype), *parts])

    def announce(self, start: int, stop: int) -> None:
        """Ask the system to fetch these tokens in the background, for a later `read`."""
        for tokens, first, end in self._ranges(start, stop):
            tokens.announce(first, end)

    def _ranges(self, start: int, stop: int) -> list[tuple[StoredTokens, int, int]]:
        """Return the files with tokens start..stop-1, each with the range in it."""
        number, ranges = self._shard_of(start), []
        while start < stop:
            first, end = self._token_starts[number], min(stop, self._token_starts[number + 1])
            ranges.append((self._shards[number].tokens, start - first, end - first))
            start, number = end, number + 1
        return ranges

    def document_at(self, position: int) -> tuple[int, int]:
        """Return (document, offset in it) of a token position: a binary search in the index, O(log documents)."""
        if not 0 <= position < self.n_tokens:
            raise ConfigError(f"{self.prefix}.bin has {self.n_tokens} tokens; position {position} is outside")
        number = self._shard_of(position)
        shard, offset = self._shards[number], position - self._token_starts[number]
        after = bisect.bisect_right(range(shard.n_documents), offset, key=shard.document_start)
        return self._document_starts[number] + after - 1, offset - shard.document_start(after - 1)

    def document_start(self, document: int) -> int:
        """Return the position of a document's first token. `n_documents` gives the end of the stream."""
        number = min(bisect.bisect_right(self._document_starts, document), len(self._shards)) - 1
        return self._token_starts[number] + self._shards[number].document_start(
            document - self._document_starts[number]
        )

    def document_starts(self) -> npt.NDArray[np.int64]:
        """Return the position of each document's first token, and the end, (n_documents + 1,). Reads all of it."""
        firsts = self._token_starts[:-1]
        parts = [first + shard.document_starts()[:-1] for first, shard in zip(firsts, self._shards, strict=True)]
        return np.concatenate([*parts, np.array([self.n_tokens], dtype=np.int64)])

    def borders(self, start: int, stop: int) -> list[int]:
        """The positions from start + 1 to stop - 1 at which a document begins, rising; empty documents count once."""
        found: list[int] = []
        if stop - start < 2:
            return found
        document = self.document_at(start)[0] + 1
        while (position := self.document_start(document)) < stop:
            if position > start and (not found or position > found[-1]):
                found.append(position)
            document += 1
        return found

    @property
    def unchecked(self) -> list[Path]:
        """The prefixes without `.sums`, whose damage would not be noticed."""
        return [shard.prefix for shard in self._shards if shard.sums is None]

    def bin_path(self, position: int) -> Path:
        """Return the file with a token position, for messages."""
        return Path(f"{self._shards[self._shard_of(position)].prefix}.bin")

    def _shard_of(self, position: int) -> int:
        """Return the shard with a position, which is never an empty shard."""
        return min(bisect.bisect_right(self._token_starts, position), len(self._shards)) - 1


def shard_prefixes(prefix: Path) -> list[Path]:
    """Return `prefix` itself if there is such a pair of files, else the set of shards from `prefix-00000-of-NNNNN` on.

    ConfigError, which names the file: there are both or two sets, or a set is incomplete.
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
            f"{prefix}: {' and '.join(kinds)} are token files of two corpora. Name one, or remove the other."
        )
    size = sets.pop()
    if int(size) > len(names):  # before anything grows with a number that a file name states
        raise ConfigError(f"{prefix}-*-of-{size}: the set of {int(size)} shards is incomplete")
    prefixes = [prefix.with_name(f"{prefix.name}-{number:05d}-of-{size}") for number in range(int(size))]
    present = set(names)
    for path in prefixes:
        for suffix in (".bin", ".idx"):
            if f"{path.name}{suffix}" not in present:
                raise ConfigError(f"{path}{suffix}: no such file; the set of {int(size)} shards is incomplete")
    return prefixes


def make_sums(prefix: Path, read: Callable[[int], object] = int) -> None:
    """Check that two token files are a pair, and write `.sums` with the checksums of their present content.

    `read` is called with the bytes of each part that is read.
    """
    Shard(prefix, compare=False)
    paths = [Path(f"{prefix}{suffix}") for suffix in (".bin", ".idx")]
    sizes = [path.stat().st_size for path in paths]
    bin_sums, idx_sums = (sums_of_file(path, read) for path in paths)
    with open_replacement(sums_path(prefix), durable=True) as file:
        write_sums(file, bin_sums, idx_sums, bin_bytes=sizes[0], idx_bytes=sizes[1])


def compare_sums(prefix: Path, read: Callable[[int], object] = int) -> list[str] | None:
    """Return a line for each block that differs from `.sums`; None if there is no such file. Reads both files whole.

    `read` is called with the bytes of each part that is read.
    """
    try:
        sums = open_sums(prefix)
    except ConfigError as error:
        return [str(error)]
    return (
        None if sums is None else [str(found) for file in sums.files.values() for found in damaged_blocks(file, read)]
    )


def sampled_digest(path: Path) -> str:
    """Return the SHA-256 of a file's size and of 16 evenly spaced blocks of 4 KiB, the first and last included.

    It takes as long for any size. It detects another file, another size and damage to more than a 15th of the file, but
    a single wrong byte only inside those blocks.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open_regular(path) as file:
        for i in range(_SAMPLES):
            file.seek(max(size - _SAMPLE_BYTES, 0) * i // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
