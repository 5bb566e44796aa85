"""Find which document of a work folder's last shards is document n of a corpus's token files, and the reverse."""

from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.corpus.corpus import SPLITS, read_corpus
from data_prep.corpus.split import SplitConfig
from data_prep.documents.shards import DamagedShardError, Document, parent_id, read_shard
from data_prep.execution.shard_runs import SHARD_ENDING, read_steps
from data_prep.reports.explain import Progress, unseen, watched
from gpt.errors import ConfigError, import_extra

_ROW = np.dtype([("order", "<u8"), ("text", "<u8"), ("shard", "<i4"), ("index", "<i4")])


@dataclass(frozen=True)
class Source:
    """A document's id, its page's URL or "", and the shard of the work folder that holds its text."""

    id: str
    url: str
    shard: Path


def sources_of(
    corpus: Path, work: Path, *, split: str, documents: Iterable[int], progress: Progress = unseen
) -> dict[int, Source]:
    """Find the sources of documents of the token files `split` ("train" or "validation") of a corpus, by number.

    Reads all shards of the last run in `work`, whose texts it hashes, with 24 bytes of memory for each document.
    `progress` is called with the shards that are read and their number.
    ConfigError: there is no such corpus or work folder, or the last run there made another corpus.
    """
    shards, rows = _read_split(corpus, work, split, progress)
    with _again():
        return _fetch(shards, {number: rows[number] for number in sorted(set(documents))})


def numbers_of(corpus: Path, work: Path, *, split: str, ids: Set[str], progress: Progress = unseen) -> dict[int, str]:
    """Find the documents of these ids in the token files `split`: number and id, pieces of a document included.

    Cost, progress and errors as for `sources_of`.
    """
    shards, rows = _read_split(corpus, work, split, progress)
    with _again():
        found = {
            (shard, index): document.id
            for shard, path in enumerate(watched(shards, progress))
            for index, document in enumerate(read_shard(path))
            if document.id in ids or parent_id(document.id) in ids
        }
    places = zip(rows["shard"].tolist(), rows["index"].tolist(), strict=True)
    return {number: found[place] for number, place in enumerate(places) if place in found}


def _read_split(corpus: Path, work: Path, split: str, progress: Progress) -> tuple[list[Path], npt.NDArray[np.void]]:
    """The last shards of the work folder, and the split's documents in the order of its token files."""
    description = read_corpus(corpus)
    try:
        output = description["recipe"]["output"]
        division = SplitConfig(output["validation_fraction"], output["seed"])
        kind = next(name for name, file in SPLITS.items() if file == split)
        n_documents = int(description["splits"][kind]["documents"])
    except (KeyError, TypeError, StopIteration):
        raise ConfigError(f"{corpus}: {split} is no split that `triaxial prepare` made") from None
    steps = read_steps(work)
    shards = [path for path in steps.done[-1].shards(work) if path.name.endswith(SHARD_ENDING)]
    with _again():
        rows = _rows(shards, division, progress, validation=kind == "validation")
    if len(rows) != n_documents:
        raise ConfigError(
            f"{work}: its last run has {len(rows):,} documents for {split}, but {corpus} has {n_documents:,}: "
            "another run made this corpus"
        )
    return shards, rows


@contextmanager
def _again() -> Iterator[None]:
    """Add the remedy to the error of a damaged shard."""
    try:
        yield
    except DamagedShardError as error:
        raise ConfigError(f"{error}. Run `triaxial prepare` again") from None


def _rows(shards: list[Path], division: SplitConfig, progress: Progress, *, validation: bool) -> npt.NDArray[np.void]:
    """The split's documents in the order of its token files, as data_prep/corpus/tokenize.py sorts them."""
    digest = import_extra("xxhash", extra="data").xxh3_64_intdigest
    found = (
        (division.order(document.id), digest(document.text.encode()), number, index)
        for number, path in enumerate(watched(shards, progress))
        for index, document in enumerate(read_shard(path))
        if division.is_validation(document.id) == validation
    )
    rows = np.fromiter(found, dtype=_ROW)
    return rows[np.lexsort((rows["text"], rows["order"]))]


def _fetch(shards: list[Path], wanted: dict[int, np.void]) -> dict[int, Source]:
    """Read the wanted documents' ids and URLs from their shards."""
    places = {(int(row["shard"]), int(row["index"])): number for number, row in wanted.items()}
    found = {}
    for shard in sorted({shard for shard, _ in places}):
        for index, document in enumerate(read_shard(shards[shard])):
            if (shard, index) in places:
                found[places[shard, index]] = _source(document, shards[shard])
    return found


def _source(document: Document, shard: Path) -> Source:
    return Source(document.id, str(document.metadata.get("url", "")), shard)
