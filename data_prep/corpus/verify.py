"""Compare every byte and every id of a corpus with its corpus.json."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from data_prep.corpus.corpus import CORPUS_FILE, TOKEN_FILE, VERSION, read_corpus, seal
from gpt.errors import ConfigError
from gpt.files.json_rules import Fields, FileName, ListOf, Plain, Text, ValuesOf, Whole
from gpt.files.regular import open_regular, read_bytes
from gpt.token_files.files import TokenFile, compare_sums, token_dtype
from gpt.tokenizer.tokenizers import load_tokenizer

_BLOCK_BYTES = 1 << 24
_MAX_SHOWN_BLOCKS = 5
# The rules of the fields that are compared. A right digest proves nothing about who wrote corpus.json.
_FILE = Fields({"bytes": Whole(), "sha256": Text()})
_SHARD = Fields(
    {"name": FileName(), "tokens": Whole(), "documents": Whole(), "bin": _FILE, "idx": _FILE},
    {"sums": Fields({"sha256": Text()})},
)
_STREAM = Fields({"vocab_size": Whole(1), "shards": ListOf(_SHARD)})
_SPLIT = Fields(
    {"tokens": Whole(), "documents": Whole(), "shards": ListOf(_SHARD)},
    {"streams": ValuesOf(_STREAM), "rankings": Fields({"name": FileName(), "sha256": Text()})},
)
_TOKENIZER = Fields(
    {
        **{"file": FileName(), "files": ValuesOf(Text(), keys=FileName()), "fingerprint": Text()},
        **{"vocab_size": Whole(1), "end_of_document_id": Whole()},
    }
)
_DESCRIPTION = Fields(
    {
        **{"vocab_size": Whole(1), "tokens": Whole(), "documents": Whole()},
        **{"tokenizer": _TOKENIZER, "splits": ValuesOf(_SPLIT)},
    },
    {"chat": Fields({"kind": Text(), "end_ids": ListOf(Whole())})},
)


@dataclass(frozen=True)
class Verified:
    """Result of a check: what was read, and a line for each fault, which names the file. No fault: it is complete."""

    files: int
    n_bytes: int
    tokens: int
    documents: int
    faults: tuple[str, ...]


def verify(
    folder: Path, *, n_threads: int, advance: Callable[[float, float], None] = lambda done, total: None
) -> Verified:
    """Check everything in corpus.json: files, digests, counts, the range of the ids, the tokenizer.

    Reads each file once, or twice if it has block sums, up to `n_threads` at a time. Memory: about 50 MB per thread.
    `advance` gets the bytes that are read so far, and those of all. ConfigError: corpus.json is missing, or has version
    1.
    """
    try:
        description = read_corpus(folder)
    except ConfigError as error:
        if not (folder / CORPUS_FILE).exists():
            raise
        return _damaged(str(error))
    if fault := Plain().fault(description, "its content"):
        return _damaged(f"{folder / CORPUS_FILE}: {fault}")
    if description.get("version") == 1:
        raise ConfigError(
            f"{folder / CORPUS_FILE}: version 1 lacks the facts to verify. Run `triaxial prepare` again, which writes "
            f"version {VERSION}"
        )
    if description.get("sha256") != seal(description):
        return _damaged(f"{folder / CORPUS_FILE}: its own sha256 does not match: the file is damaged or was edited")
    if fault := _DESCRIPTION.fault(description, ""):
        return _damaged(f"{folder / CORPUS_FILE}: {fault}. Run `triaxial prepare` again")
    files = [files for split in description["splits"].values() for files in _with_rules(split, description)]
    shards = [shard for shard, _, _ in files]
    read = _Reading(sum((1 + ("sums" in s)) * (s["bin"]["bytes"] + s["idx"]["bytes"]) for s in shards), advance)
    with ThreadPoolExecutor(n_threads) as threads:  # digests and numpy release the GIL
        found = threads.map(lambda one: list(_shard_faults(folder, one, read)), files)
        faults = [fault for one in found for fault in one]
    faults += _side_file_faults(folder, description)
    faults += _tokenizer_faults(folder, description["tokenizer"])
    faults += _total_faults(folder, description)
    listed = {f"{shard['name']}.{suffix}" for shard in shards for suffix in ("bin", "idx", "sums") if suffix in shard}
    stray = sorted(
        path.name for path in folder.iterdir() if TOKEN_FILE.fullmatch(path.name) and path.name not in listed
    )
    faults += [f"{folder / name}: not a file of this corpus. Remove it" for name in stray]
    return Verified(
        files=len(listed) + len(description["tokenizer"]["files"]),
        n_bytes=sum(shard[suffix]["bytes"] for shard in shards for suffix in ("bin", "idx")),
        tokens=description["tokens"],
        documents=description["documents"],
        faults=tuple(faults),
    )


class _Reading:
    """Adds up the bytes that all threads read, and reports them now and then."""

    def __init__(self, total: int, advance: Callable[[float, float], None]) -> None:
        self._total, self._advance, self._lock = total, advance, Lock()
        self._done = self._reported = 0

    def __call__(self, n_bytes: int) -> None:
        with self._lock:
            self._done += n_bytes
            if self._done - self._reported >= _BLOCK_BYTES or self._done == self._total:
                self._reported = self._done
                self._advance(self._done, self._total)


def _damaged(fault: str) -> Verified:
    """Return the one fault of a damaged description, with which nothing can be compared."""
    return Verified(0, 0, 0, 0, (fault,))


def _with_rules(
    split: dict[str, Any], description: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], int, tuple[int, ...]]]:
    """Yield (shard, size of its vocabulary, the ids of which one must be last, if any) of a split and its streams."""
    ends: tuple[int, ...] = (description["tokenizer"]["end_of_document_id"],)
    if "chat" in description:
        ends = () if description["chat"]["kind"] == "prompts" else tuple(description["chat"]["end_ids"])
    for shard in split["shards"]:
        yield shard, description["vocab_size"], ends
    for stream in split.get("streams", {}).values():
        for shard in stream["shards"]:
            yield shard, stream["vocab_size"], ()


def _side_file_faults(folder: Path, description: dict[str, Any]) -> Iterator[str]:
    for about in (split["rankings"] for split in description["splits"].values() if "rankings" in split):
        path = folder / about["name"]
        try:
            digest = hashlib.sha256(read_bytes(path)).hexdigest()
        except (OSError, ConfigError) as error:
            yield _reason(path, error)
            continue
        if digest != about["sha256"]:
            yield f"{path}: sha256 {digest}, expected {about['sha256']}"


def _shard_faults(folder: Path, rules: tuple[dict[str, Any], int, tuple[int, ...]], read: _Reading) -> Iterator[str]:
    """`rules`: a shard with its rules, of `_with_rules`."""
    shard, vocab_size, end_ids = rules
    dtype = token_dtype(vocab_size)
    whole = True
    for suffix in ("bin", "idx"):
        path, expected = folder / f"{shard['name']}.{suffix}", shard[suffix]
        try:
            size = path.stat().st_size
            digest, largest, smallest = _read(path, dtype, read)
        except (OSError, ConfigError) as error:
            yield _reason(path, error)
            whole = False
            continue
        if size != expected["bytes"]:
            yield f"{path}: {size:,} bytes, expected {expected['bytes']:,}"
            whole = False
        elif digest != expected["sha256"]:
            yield f"{path}: sha256 {digest}, expected {expected['sha256']}"
            whole = False
        if suffix == "bin" and (largest >= vocab_size or smallest < 0):
            yield f"{path}: has ids from {smallest} to {largest}, but the vocabulary has 0 to {vocab_size - 1}"
    yield from _sums_faults(folder / shard["name"], shard, read)
    if whole:
        yield from _index_faults(folder / shard["name"], shard, end_ids)


def _sums_faults(prefix: Path, shard: dict[str, Any], read: _Reading) -> Iterator[str]:
    """Find the damaged blocks by the `.sums` file, if the corpus has one: it locates the damage in a file."""
    if "sums" not in shard:
        return
    path = Path(f"{prefix}.sums")
    try:
        digest = hashlib.sha256(read_bytes(path)).hexdigest()
    except (OSError, ConfigError) as error:
        yield f"{_reason(path, error)}; `triaxial prepare checksum {prefix}` writes it again"
        return
    if digest != shard["sums"]["sha256"]:
        yield f"{path}: sha256 {digest}, expected {shard['sums']['sha256']}"
        return
    try:
        damaged = compare_sums(prefix, read) or []
    except OSError:  # of a token file, which is reported already
        return
    yield from damaged[:_MAX_SHOWN_BLOCKS]
    if len(damaged) > _MAX_SHOWN_BLOCKS:
        yield f"{prefix}: {len(damaged) - _MAX_SHOWN_BLOCKS:,} more blocks are damaged"


def _reason(path: Path, error: OSError | ConfigError) -> str:
    """The fault of a file that cannot be read; a ConfigError names what is in its place, such as a pipe."""
    return f"{path}: {error.strerror}" if isinstance(error, OSError) else str(error).rstrip(".")


def _read(path: Path, dtype: np.dtype[Any], read: _Reading) -> tuple[str, int, int]:
    """Return (sha256, largest, smallest number of the bytes read as `dtype`); -1 and 0 if there is no number."""
    digest = hashlib.sha256()
    largest, smallest = -1, 0
    with open_regular(path) as file:
        while block := file.read(_BLOCK_BYTES):
            read(len(block))
            digest.update(block)
            numbers = np.frombuffer(block, dtype, count=len(block) // dtype.itemsize)
            if len(numbers):
                largest, smallest = max(largest, int(numbers.max())), min(smallest, int(numbers.min()))
    return digest.hexdigest(), largest, smallest


def _index_faults(prefix: Path, shard: dict[str, Any], end_ids: tuple[int, ...]) -> Iterator[str]:
    """Check the counts and the last token of files whose digests are right."""
    try:
        tokens = TokenFile(prefix)
    except ConfigError as error:
        yield str(error)
        return
    for key, found in (("tokens", tokens.n_tokens), ("documents", tokens.n_documents)):
        if found != shard[key]:
            yield f"{prefix}.idx: {found:,} {key}, expected {shard[key]:,}"
    if end_ids and tokens.n_tokens and int(tokens.read(tokens.n_tokens - 1, tokens.n_tokens)[0]) not in end_ids:
        yield f"{prefix}.bin: its last token is not the end-of-document token, {', '.join(map(str, end_ids))}"


def _tokenizer_faults(folder: Path, about: dict[str, Any]) -> list[str]:
    faults = []
    for name, expected in about["files"].items():
        try:
            digest = hashlib.sha256(read_bytes(folder / name)).hexdigest()
        except (OSError, ConfigError) as error:
            faults.append(_reason(folder / name, error))
            continue
        if digest != expected:
            faults.append(f"{folder / name}: sha256 {digest}, expected {expected}: this is not the corpus's tokenizer")
    if faults:
        return faults
    tokenizer = load_tokenizer(folder / about["file"])
    for key in ("fingerprint", "vocab_size", "end_of_document_id"):
        if getattr(tokenizer, key) != about[key]:
            faults.append(f"{folder / about['file']}: {key} {getattr(tokenizer, key)}, expected {about[key]}")
    return faults


def _total_faults(folder: Path, description: dict[str, Any]) -> Iterator[str]:
    """Check that the totals in corpus.json add up."""
    splits = description["splits"]
    for key in ("tokens", "documents"):
        for name, split in splits.items():
            if sum(shard[key] for shard in split["shards"]) != split[key]:
                yield f"{folder / CORPUS_FILE}: {key} of the files of {name} do not add up to {split[key]:,}"
        if sum(split[key] for split in splits.values()) != description[key]:
            yield f"{folder / CORPUS_FILE}: {key} of the splits do not add up to {description[key]:,}"
