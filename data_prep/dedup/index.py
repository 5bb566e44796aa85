"""What de-duplication notes of every document, and the index of a corpus that later ones are compared with.

A document's *place* is one number: corpus, shard and row. Of the corpora to compare with, the one of highest priority
is 0, and the corpus in the making is OWN, the last; so the smallest place of a cluster says whose it is. Nothing here
decides which copy stays.
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

Kind = Literal["exact", "minhash"]
INDEX_VERSION = 1
ABOUT_ENDING, NOTES_ENDING, ROWS_ENDING = ".about", ".notes", ".rows"

_SHARD_BITS, _ROW_BITS = 22, 30
_CORPUS_SHIFT = _SHARD_BITS + _ROW_BITS
OWN = 2 ** (64 - _CORPUS_SHIFT) - 1
MOST_SHARDS, MOST_ROWS = 2**_SHARD_BITS, 2**_ROW_BITS
_OPEN_FILES = 64
_BLOCK = 1 << 12  # documents that are described at once

# A document's row in a shard's .about, in the shard's order, 40 bytes. Its id and its n-grams (none, or sorted 64-bit
# hashes) stand in .notes from byte `start` on.
ABOUT = np.dtype(
    [("n_bytes", "<u8"), ("order", "<u8"), ("text", "<u8"), ("start", "<u8"), ("id_bytes", "<u4"), ("n_grams", "<u4")]
)


@dataclass(frozen=True)
class DedupConfig:
    """Section [dedup]. `against` names corpora that were prepared before, by their corpus or work folders, that of
    highest priority first: what one of them holds leaves this corpus, in the exact and in the fuzzy step."""

    against: tuple[Path, ...] = ()


@dataclass(frozen=True)
class IndexedShard:
    """A shard's documents; `digests` are those of its .about and .notes."""

    name: str
    documents: int
    digests: tuple[str, str]


@dataclass(frozen=True)
class Group:
    """A file of sorted rows of several shards, with its digest and its path from the index's folder."""

    path: str
    bytes: int
    digest: str


@dataclass(frozen=True)
class Index:
    """Describes what a corpus keeps for comparison. `folder` holds the shards' .about and .notes, as a path from the
    index's own; what the rows are compared by is in `setting`."""

    kind: Kind
    setting: dict[str, Any]
    folder: str
    shards: tuple[IndexedShard, ...]
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Corpus:
    """An index with where it was found; `number` is its place in the order of priority."""

    number: int
    path: Path
    index: Index

    def sources(self) -> list[RowSource]:
        """Its groups, with places of this corpus."""
        adapt = None if self.number == OWN else _renumber(self.number)
        return [RowSource(self.path.parent / group.path, adapt) for group in self.index.groups]

    def file(self, shard: int, ending: str) -> Path:
        """A shard's .about or .notes."""
        return self.path.parent / self.index.folder / f"{self.index.shards[shard].name}{ending}"


def place(shard: int, row: int = 0, *, corpus: int = OWN) -> int:
    """The number of a document."""
    return corpus << _CORPUS_SHIFT | shard << _ROW_BITS | row


def corpus_of(places: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Number of the corpus of each place."""
    return places >> np.uint64(_CORPUS_SHIFT)


def shard_of(number: int) -> tuple[int, int, int]:
    """(corpus, shard, row) of a place."""
    return number >> _CORPUS_SHIFT, number >> _ROW_BITS & MOST_SHARDS - 1, number & MOST_ROWS - 1


def in_shard(shard: int) -> Callable[[Rows], Rows]:
    """Turns rows whose place is the row in a shard into rows of this corpus."""
    return _add_to_places(np.uint64(place(shard)), np.uint64(MOST_ROWS - 1))


def _renumber(corpus: int) -> Callable[[Rows], Rows]:
    return _add_to_places(np.uint64(place(0, corpus=corpus)), np.uint64((1 << _CORPUS_SHIFT) - 1))


def _add_to_places(base: np.uint64, mask: np.uint64) -> Callable[[Rows], Rows]:
    def adapt(rows: Rows) -> Rows:
        rows = rows.copy()
        rows["place"] = rows["place"] & mask | base
        if "corpus" in (rows.dtype.names or ()):
            rows["corpus"] = corpus_of(rows["place"])
        return rows

    return adapt


def place_ranges(corpora: Sequence[Corpus], n: int) -> list[Range]:
    """All places in at most n ranges of about as many documents each; the first and last reach to the ends."""
    sizes = [shard.documents for corpus in corpora for shard in corpus.index.shards]
    bases = [place(i, corpus=corpus.number) for corpus in corpora for i in range(len(corpus.index.shards))]
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
    """Call what is yielded with (document, grams or None) for each document of a shard, in order."""
    xxhash = import_extra("xxhash", extra="data")
    rows: list[tuple[int, ...]] = []
    position = 0
    with open(about_path, "wb") as about, open(notes_path, "wb") as notes:

        def describe(document: Document, grams: npt.NDArray[np.uint64] | None = None) -> None:
            nonlocal position
            name = document.id.encode("utf-8", "surrogatepass")
            order = keyed_hash(document.id, key=key)
            text = document.text.encode()
            n_grams = 0 if grams is None else len(grams)
            rows.append((len(text), order, xxhash.xxh3_64_intdigest(text), position, len(name), n_grams))
            notes.write(name)
            if grams is not None:
                notes.write(grams.tobytes())
            position += len(name) + 8 * n_grams
            if len(rows) >= _BLOCK:
                about.write(np.array(rows, dtype=ABOUT).tobytes())
                rows.clear()

        yield describe
        about.write(np.array(rows, dtype=ABOUT).tobytes())


class Notes:
    """Reads single documents' ids and n-grams; a few files are open at a time."""

    def __init__(self, corpora: Sequence[Corpus]) -> None:
        self._corpora = {corpus.number: corpus for corpus in corpora}
        self._open: OrderedDict[tuple[int, int, str], IO[bytes]] = OrderedDict()

    def __enter__(self) -> "Notes":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()

    def about(self, number: int) -> np.void:
        """The ABOUT row of a place."""
        corpus, shard, row = shard_of(number)
        data = os.pread(self._file(corpus, shard, ABOUT_ENDING), ABOUT.itemsize, row * ABOUT.itemsize)
        entry: np.void = np.frombuffer(data, ABOUT)[0]
        return entry

    def document_id(self, number: int) -> str:
        """The id of the document at a place."""
        about = self.about(number)
        data = os.pread(self._notes(number), int(about["id_bytes"]), int(about["start"]))
        return data.decode("utf-8", "surrogatepass")

    def grams(self, number: int, about: np.void) -> npt.NDArray[np.uint64]:
        """The n-grams of the document at a place, sorted."""
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
    """Name of an index in a workspace."""
    return f"{kind}_index.json"


def write_index(config: Index, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: an index as one JSON file; its inputs are in its digests."""
    values = {"format": "triaxial-dedup-index", "version": INDEX_VERSION, **asdict(config)}
    outputs[0].write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return TaskResult()


def read_index(path: Path) -> Index:
    """An index that `write_index` wrote."""
    values = json.loads(path.read_text(encoding="utf-8"))
    if values.pop("format") != "triaxial-dedup-index" or values.pop("version") != INDEX_VERSION:
        raise ConfigError(f"{path}: not an index that this version reads; prepare that corpus again")
    shards = tuple(IndexedShard(**{**shard, "digests": tuple(shard["digests"])}) for shard in values.pop("shards"))
    groups = tuple(Group(**group) for group in values.pop("groups"))
    return Index(shards=shards, groups=groups, **values)


def read_corpora(paths: Sequence[Path]) -> list[Corpus]:
    """The corpora of a task: paths of indexes, in the order of priority, the corpus in the making last."""
    numbers = [*range(len(paths) - 1), OWN]
    return [Corpus(number, path, read_index(path)) for number, path in zip(numbers, paths, strict=True)]


def find_indexes(folders: Sequence[Path], kind: Kind, *, own: Path, setting: dict[str, Any]) -> list[Path]:
    """Indexes of corpora that were prepared before, by their corpus or work folders.

    ConfigError: a folder without one, this run's own, one that lost a file, or one made with other settings.
    """
    paths = []
    for folder in folders:
        places = [place / index_name(kind) for place in (folder, folder / "work")]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise ConfigError(
                f"dedup.against: {folder} keeps no {places[0].name}, nor does its subfolder 'work'; prepare that "
                f"corpus with dedup_{kind}.enabled = true, keep its work folder, and name that if it lies apart"
            )
        if path.resolve().parent == own.resolve():
            raise ConfigError(f"dedup.against: {folder} is this run's own; a corpus cannot be compared with itself")
        _check_index(path, folder, kind, setting)
        paths.append(path)
    return paths


def _check_index(path: Path, folder: Path, kind: Kind, setting: dict[str, Any]) -> None:
    index = read_index(path)
    for name, value in setting.items():
        theirs = index.setting.get(name)
        if theirs != value:
            raise ConfigError(
                f"dedup.against: {folder} was prepared with {name} = {theirs!r} in dedup_{kind}, this recipe says "
                f"{value!r}; both must say the same, so change this recipe or prepare that corpus again"
            )
    corpus = Corpus(0, path, index)
    wanted = {path.parent / group.path: group.bytes for group in index.groups}
    wanted |= {corpus.file(i, ABOUT_ENDING): shard.documents * ABOUT.itemsize for i, shard in enumerate(index.shards)}
    for file, n_bytes in wanted.items():
        if not file.is_file() or file.stat().st_size != n_bytes:
            raise ConfigError(f"dedup.against: {file} is missing or cut; prepare the corpus in {folder} again")


INDEX = Stage("dedup_index", write_index)
