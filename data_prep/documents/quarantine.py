"""Set aside the documents that a stage fails on, so that no single document ends a run.

Every stage that computes something from a text does so through `Quarantine`. A failed document counts as dropped. It is
written, with its text and the exception, to a file of JSON lines in the subfolder `quarantine` of the work folder.
"""

import json
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from data_prep.documents.counts import Tally
from data_prep.documents.shards import DamagedShardError, Document, whole_text
from gpt.errors import ConfigError
from gpt.files.json_text import decode_json

REASON = "quarantined"
FOLDER = "quarantine"  # in the work folder: one subfolder a stage
# Not caused by the document: these end the task. All else does not, also panics of Rust, which are no Exceptions.
OUTSIDE = (ConfigError, OSError, ImportError, KeyboardInterrupt, SystemExit, GeneratorExit)
_KEYS = frozenset(("stage", "shard", "record", "id", "exception", "where"))
_MAX_MESSAGE = 300  # characters

T = TypeVar("T")
D = TypeVar("D", bound=Document)


@dataclass(frozen=True)
class QuarantineConfig:
    """The [quarantine] section of a recipe: how many documents a stage may fail on."""

    max_share: float = 0.01
    """A stage stops if it fails on more than this share of its documents."""
    min_documents: int = 20
    """This many failed documents never stop a stage."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_share <= 1:
            raise ConfigError(f"quarantine.max_share = {self.max_share} is invalid: must be between 0 and 1")
        if self.min_documents < 0:
            raise ConfigError(f"quarantine.min_documents = {self.min_documents} is invalid: must be at least 0")

    def check(self, work: Path, stage: str, n_failed: int, n_documents: float) -> None:
        """Stop a stage if too many of its documents failed; `work` is the work folder, which has the failed ones."""
        if n_failed <= max(self.min_documents, self.max_share * n_documents):
            return
        folder = work / FOLDER / stage
        newest = max(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
        first = first_failed(newest)
        raise ConfigError(
            f"stage '{stage}' failed on {n_failed:,} of about {n_documents:,.0f} documents, more than "
            f"quarantine.max_share = {self.max_share:g} allows. One of them: {first['id']} "
            f"({first['exception']}, {first['where']}). All are in {folder}. Mend the cause, or use a larger share"
        )


@dataclass(frozen=True)
class NumberedDocument(Document):
    """A document and its row in its shard, for stages that skip some rows."""

    row: int = 0


def quarantine_path(output: Path) -> Path:
    """File of the failed documents of the task with this first output; it exists only if there are any."""
    return output.with_name(f"{output.name}.{FOLDER}")


class Quarantine:
    """The failed documents of one task.

    with Quarantine("language", inputs, outputs) as quarantine:
        for document, found in quarantine.each(read_shard(inputs[0]), detect, tally):
    """

    def __init__(self, stage: str, inputs: Sequence[Path], outputs: Sequence[Path]) -> None:
        self._stage, self._source, self._path = stage, inputs[0], quarantine_path(outputs[0])
        self._file: IO[str] | None = None
        self._n_seen = 0

    def __enter__(self) -> "Quarantine":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def each(
        self, documents: Iterable[D], function: Callable[[D], T], tally: Tally | None = None
    ) -> Iterator[tuple[D, T]]:
        """Yield (document, function(document)) for each that does not fail; the others count in `tally` as dropped."""
        for document, values in self.each_or_none(documents, lambda document: (function(document),), tally):
            if values is not None:
                yield document, values[0]

    def each_or_none(
        self, documents: Iterable[D], function: Callable[[D], T], tally: Tally | None = None
    ) -> Iterator[tuple[D, T | None]]:
        """Yield every document with function(document), or with None if it fails."""
        for document in documents:
            value = None
            try:
                value = function(document)
            except OUTSIDE:
                raise
            except BaseException as error:
                self.add(document, error, tally)
            self._n_seen += 1
            yield document, value

    def each_batch(
        self,
        batches: Iterable[list[D]],
        function: Callable[[list[D]], Sequence[T]],
        tally: Tally | None = None,
    ) -> Iterator[tuple[list[D], Sequence[T]]]:
        """Yield (documents, function(documents)) for each batch; if that fails, for each of its documents alone."""
        for batch in batches:
            try:
                values = function(batch)
            except OUTSIDE:
                raise
            except BaseException:
                for document, value in self.each(batch, lambda document: function([document])[0], tally):
                    yield [document], [value]
            else:
                self._n_seen += len(batch)
                yield batch, values

    def add(self, document: Document, error: BaseException, tally: Tally | None = None) -> None:
        """Set a document aside."""
        n_bytes = len(document.text.encode("utf-8", "replace"))
        said = describe_error(error)
        frames = traceback.extract_tb(error.__traceback__)
        line = {
            "stage": self._stage,
            "shard": f"{self._source.parent.name}/{self._source.name}",
            "record": document.row if isinstance(document, NumberedDocument) else self._n_seen,
            "id": document.id,
            "url": document.metadata.get("url", ""),
            "exception": said,
            "where": f"{Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else "",
            "bytes": n_bytes,
            "text": document.text,
            "metadata": document.metadata,
        }
        if self._file is None:
            self._file = open(self._path, "w", encoding="utf-8")  # noqa: SIM115  closed in __exit__
        self._file.write(whole_text(json.dumps(line, ensure_ascii=False)) + "\n")
        if tally is not None:
            tally.drop(REASON, n_bytes, document.id, detail=said)


def describe_error(error: BaseException) -> str:
    """Name an exception in one line."""
    said = " ".join(str(error).split())
    kind = type(error).__name__
    return whole_text(f"{kind}: {said}"[:_MAX_MESSAGE] if said else kind)


def read_quarantine(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries of a file of failed documents. DamagedShardError: it is not as it was written."""
    if not path.is_file():
        raise DamagedShardError(path, "missing")
    try:
        entries = [decode_json(line) for line in path.read_bytes().splitlines()]
    except ValueError as error:
        raise DamagedShardError(path, error) from None
    for entry in entries:
        if not isinstance(entry, dict) or not _KEYS.issubset(entry) or not isinstance(entry["record"], int):
            raise DamagedShardError(path, "another form")
        yield entry


def first_failed(path: Path) -> dict[str, Any]:
    """Return the first entry of a file of failed documents, to show it; if it is damaged, an entry that says so."""
    try:
        return next(read_quarantine(path))
    except (DamagedShardError, StopIteration):
        return dict.fromkeys(_KEYS, "unreadable")


def failed_rows(paths: Iterable[Path]) -> frozenset[int]:
    """Return the rows of a shard's documents in such files, which a stage that only reads the shard has written."""
    return frozenset(entry["record"] for path in paths for entry in read_quarantine(path))
