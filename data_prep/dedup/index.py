"""Record the facts about every document that de-duplication needs, and index a corpus so that later ones can be
compared with it.

A document's *position* is one 64-bit number: corpus, shard and row. The other corpora are numbered by priority, the
highest first, from 0. The corpus being made is OWN, the last number. The smallest position of a cluster therefore shows
which corpus has priority.
"""

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt

from data_prep.dedup.sorted_rows import LAST, Range, Rows, RowSource
from data_prep.documents.shards import Document, keyed_hash
from data_prep.execution.tasks import Stage, TaskResult
from gpt.errors import ConfigError, import_extra
from gpt.files.json_text import decode_json

Kind = Literal["exact", "minhash"]
INDEX_VERSION = 1
ABOUT_ENDING, NOTES_ENDING, ROWS_ENDING = ".about", ".notes", ".rows"

_SHARD_BITS, _ROW_BITS = 22, 30
_CORPUS_SHIFT = _SHARD_BITS + _ROW_BITS
OWN = 2 ** (64 - _CORPUS_SHIFT) - 1
MAX_SHARDS, MAX_ROWS = 2**_SHARD_BITS, 2**_ROW_BITS
_OPEN_FILES = 64
_BLOCK = 1 << 12  # documents to describe at once

# A document's row in a shard's .about, in the shard's order, 40 bytes. Its id and its n-grams (none, or sorted 64-bit
# hashes) are in .notes from byte `start` on.
ABOUT = np.dtype(
    [("n_bytes", "<u8"), ("order", "<u8"), ("text", "<u8"), ("start", "<u8"), ("id_bytes", "<u4"), ("n_grams", "<u4")]
)


@dataclass(frozen=True)
class DedupConfig:
    """The [dedup] section of a recipe. Exact and fuzzy de-duplication both obey it."""

    against: tuple[Path, ...] = ()
    """Corpus or work folders of earlier corpora, highest priority first. Documents that one of them holds are removed
    from this corpus."""


@dataclass(frozen=True)
class IndexedShard:
    """A shard and its number of documents; `digests` are those of its .about and .notes."""

    name: str
    documents: int
    digests: tuple[str, str]


@dataclass(frozen=True)
class Group:
    """A file of sorted rows of several shards; `path` is relative to the index's folder."""

    path: str
    bytes: int
    digest: str


@dataclass(frozen=True)
class Index:
    """The files that a corpus keeps for comparison, and the `setting` that two corpora must share.

    `folder` has the shards' .about and .notes; it is relative to the index's folder.
    """

    kind: Kind
    setting: dict[str, Any]
    folder: str
    shards: tuple[IndexedShard, ...]
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Corpus:
    """An index and its path; `number` is the corpus's position in the order of priority."""

    number: int
    path: Path
    index: Index

    def sources(self) -> list[RowSource]:
        """Return its groups as sources whose rows have this corpus's number."""
        adapt = None if self.number == OWN else _renumber(self.number)
        return [RowSource(self.path.parent / group.path, adapt) for group in self.index.groups]

    def file(self, shard: int, ending: str) -> Path:
        """Return the path of a shard's .about or .notes."""
        return self.path.parent / self.index.folder / f"{self.index.shards[shard].name}{ending}"


def position(shard: int, row: int = 0, *, corpus: int = OWN) -> int:
    """Return the position of a document."""
    return corpus << _CORPUS_SHIFT | shard << _ROW_BITS | row


def corpus_of(positions: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the number of the corpus of each position, (n,)."""
    return positions >> np.uint64(_CORPUS_SHIFT)


def shard_of(number: int) -> tuple[int, int, int]:
    """Split a position into (corpus, shard, row)."""
    return number >> _CORPUS_SHIFT, number >> _ROW_BITS & MAX_SHARDS - 1, number & MAX_ROWS - 1


def in_shard(shard: int) -> Callable[[Rows], Rows]:
    """Return a function that turns positions within a shard into positions in this corpus."""
    return _set_corpus_and_shard(np.uint64(position(shard)), np.uint64(MAX_ROWS - 1))


def _renumber(corpus: int) -> Callable[[Rows], Rows]:
    return _set_corpus_and_shard(np.uint64(position(0, corpus=corpus)), np.uint64((1 << _CORPUS_SHIFT) - 1))


def _set_corpus_and_shard(base: np.uint64, mask: np.uint64) -> Callable[[Rows], Rows]:
    def adapt(rows: Rows) -> Rows:
        rows = rows.copy()
        rows["position"] = rows["position"] & mask | base
        if "corpus" in (rows.dtype.names or ()):
            rows["corpus"] = corpus_of(rows["position"])
        return rows

    return adapt


def position_ranges(corpora: Sequence[Corpus], n: int) -> list[Range]:
    """Divide all 64-bit positions into at most n ranges with about equally many documents."""
    sizes = [shard.documents for corpus in corpora for shard in corpus.index.shards]
    bases = [position(i, corpus=corpus.number) for corpus in corpora for i in range(len(corpus.index.shards))]
    ends = np.cumsum(sizes) if sizes else np.zeros(1, dtype=np.int64)
    cuts = {0}
    for i in range(1, n):
        document = int(ends[-1]) * i // n
        shard = int(np.searchsorted(ends, document, side="right"))
        cuts.add(bases[shard] + document - int(ends[shard]) + sizes[shard])
    firsts = sorted(cuts)
    return [Range(a, b - 1) for a, b in zip(firsts, [*firsts[1:], LAST + 1], strict=True)]


@contextmanager
def describe_documents(about_path: Path, notes_path: Path, *, key: str) -> Iterator[Callable[..., None]]:
    """Write a shard's .about and .notes. Yield a function to call with (document, grams or None, failed), in order."""
    xxhash = import_extra("xxhash", extra="data")
    rows: list[tuple[int, ...]] = []
    offset = 0
    with open(about_path, "wb") as about, open(notes_path, "wb") as notes:

        def describe(document: Document, grams: npt.NDArray[np.uint64] | None = None, *, failed: bool = False) -> None:
            nonlocal offset
            name = document.id.encode("utf-8", "surrogatepass")
            order = 0 if failed else keyed_hash(document.id, key=key)  # no row refers to a failed document
            text = b"" if failed else document.text.encode()
            n_grams = 0 if grams is None else len(grams)
            rows.append((len(text), order, xxhash.xxh3_64_intdigest(text), offset, len(name), n_grams))
            notes.write(name)
            if grams is not None:
                notes.write(grams.tobytes())
            offset += len(name) + 8 * n_grams
            if len(rows) >= _BLOCK:
                about.write(np.array(rows, dtype=ABOUT).tobytes())
                rows.clear()

        yield describe
        about.write(np.array(rows, dtype=ABOUT).tobytes())


class Notes:
    """Read ids and n-grams of single documents; at most _OPEN_FILES files are open."""

    def __init__(self, corpora: Sequence[Corpus]) -> None:
        self._corpora = {corpus.number: corpus for corpus in corpora}
        self._open: OrderedDict[tuple[int, int, str], IO[bytes]] = OrderedDict()

    def __enter__(self) -> "Notes":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()

    def about(self, number: int) -> np.void:
        """Return the ABOUT row of a position."""
        corpus, shard, row = shard_of(number)
        data = os.pread(self._file(corpus, shard, ABOUT_ENDING), ABOUT.itemsize, row * ABOUT.itemsize)
        entry: np.void = np.frombuffer(data, ABOUT)[0]
        return entry

    def document_id(self, number: int) -> str:
        """Return the id of the document at a position."""
        about = self.about(number)
        data = os.pread(self._notes(number), int(about["id_bytes"]), int(about["start"]))
        return data.decode("utf-8", "surrogatepass")

    def grams(self, number: int, about: np.void) -> npt.NDArray[np.uint64]:
        """Return the n-grams of the document at a position, sorted; `about` is its ABOUT row."""
        start = int(about["start"]) + int(about["id_bytes"])
        return np.frombuffer(os.pread(self._notes(number), 8 * int(about["n_grams"]), start), np.uint64)

    def _notes(self, number: int) -> int:
        corpus, shard, _ = shard_of(number)
        return self._file(corpus, shard, NOTES_ENDING)

    def _file(self, corpus: int, shard: int, ending: str) -> int:
        key = (corpus, shard, ending)
        if key not in self._open:
            if len(self._open) >= _OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            self._open[key] = open(self._corpora[corpus].file(shard, ending), "rb")  # noqa: SIM115  closed in __exit__
        self._open.move_to_end(key)
        return self._open[key].fileno()


def index_name(kind: Kind) -> str:
    """Return the name of an index in a work folder."""
    return f"{kind}_index.json"


def write_index(config: Index, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: write an index as one JSON file. It has no input files: the index holds their digests."""
    values = {"format": "triaxial-dedup-index", "version": INDEX_VERSION, **asdict(config)}
    outputs[0].write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return TaskResult()


def read_index(path: Path) -> Index:
    """Read an index that `write_index` wrote. ConfigError: it has another format or version."""
    try:
        values = decode_json(path.read_text(encoding="utf-8"))
        if values.pop("format") != "triaxial-dedup-index" or values.pop("version") != INDEX_VERSION:
            raise ConfigError(f"{path}: not an index that this version reads. Prepare that corpus again")
        shards = tuple(IndexedShard(**{**shard, "digests": tuple(shard["digests"])}) for shard in values.pop("shards"))
        groups = tuple(Group(**group) for group in values.pop("groups"))
        return Index(shards=shards, groups=groups, **values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path}: not an index, or damaged ({error}). Prepare that corpus again") from None


def read_corpora(paths: Sequence[Path]) -> list[Corpus]:
    """Read the indexes at `paths`: other corpora in the order of priority, then the corpus being made."""
    numbers = [*range(len(paths) - 1), OWN]
    return [Corpus(number, path, read_index(path)) for number, path in zip(numbers, paths, strict=True)]


def find_indexes(folders: Sequence[Path], kind: Kind, *, own: Path, setting: dict[str, Any]) -> list[Path]:
    """Find the indexes of earlier corpora in their corpus or work folders.

    ConfigError: a folder has no index, is this run's own, lost a file, or was made with other settings.
    """
    paths = []
    for folder in folders:
        candidates = [parent / index_name(kind) for parent in (folder, folder / "work")]
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is None:
            raise ConfigError(
                f"dedup.against: neither {folder} nor its subfolder 'work' has {index_name(kind)}. Prepare that corpus "
                f"with dedup_{kind}.enabled = true and keep its work folder; if that is elsewhere, name it here"
            )
        if path.resolve().parent == own.resolve():
            raise ConfigError(f"dedup.against: {folder} is this run's own folder. Remove it from the list")
        _check_index(path, folder, kind, setting)
        paths.append(path)
    return paths


def _check_index(path: Path, folder: Path, kind: Kind, setting: dict[str, Any]) -> None:
    index = read_index(path)
    for name, value in setting.items():
        other_value = index.setting.get(name)
        if other_value != value:
            raise ConfigError(
                f"dedup.against: {folder} was prepared with {name} = {other_value!r} in dedup_{kind}, this recipe says "
                f"{value!r}. They must be equal: change this recipe, or prepare that corpus again"
            )
    corpus = Corpus(0, path, index)
    wanted = {path.parent / group.path: group.bytes for group in index.groups}
    wanted |= {corpus.file(i, ABOUT_ENDING): shard.documents * ABOUT.itemsize for i, shard in enumerate(index.shards)}
    for file, n_bytes in wanted.items():
        if not file.is_file() or file.stat().st_size != n_bytes:
            raise ConfigError(f"dedup.against: {file} is missing or cut off. Prepare the corpus in {folder} again")


INDEX = Stage("dedup_index", write_index)
