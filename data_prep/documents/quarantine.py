"""Set aside the documents that a stage fails on, so that no single document ends a run.

Every stage that processes texts does so through `Quarantine`. A failed document counts as dropped. It is
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
from gpt.errors import ConfigError, passing_fault
from gpt.files.json_text import decode_json

REASON = "quarantined"
CUT_SHORT = "cut_short"  # fact of a task whose input file was not read to its end, since the reader failed
FOLDER = "quarantine"  # in the work folder: one subfolder a stage
# Not caused by the document: these end the task. Other errors do not, even panics of Rust, which are not Exceptions.
OUTSIDE = (ConfigError, OSError, MemoryError, ImportError, KeyboardInterrupt, SystemExit, GeneratorExit)
_KEYS = frozenset(("stage", "shard", "record", "id", "exception", "where"))
_MAX_MESSAGE = 300  # characters

T = TypeVar("T")
D = TypeVar("D", bound=Document)


@dataclass(frozen=True)
class QuarantineConfig:
    """The [quarantine] section of a recipe: how many documents a stage may fail on."""

    max_share: float = 0.01
    """A stage stops if it fails on more than this share of its documents, or if more than this
    share of its files cannot be read to the end."""
    min_documents: int = 20
    """This many failed documents never stop a stage, unless they are all."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_share <= 1:
            raise ConfigError(f"quarantine.max_share = {self.max_share} is invalid: must be between 0 and 1")
        if self.min_documents < 0:
            raise ConfigError(f"quarantine.min_documents = {self.min_documents} is invalid: must be at least 0")


class FailureCount:
    """The failures of one stage of `n_tasks` tasks; `work` is the work folder, which has the failed documents."""

    def __init__(self, config: QuarantineConfig, work: Path, stage: str, *, n_tasks: int) -> None:
        self._config, self._work, self._stage, self._n_tasks = config, work, stage, n_tasks
        self._n_added = self._n_failed = self._n_documents = self._n_cut_short = 0
        self._outputs: list[Path] = []  # the first one of each task with failures

    def add(self, output: Path, *, n_failed: int, n_documents: int, cut_short: bool) -> None:
        """Count a task, with its first output."""
        self._n_added += 1
        self._n_failed += n_failed
        self._n_documents += n_documents
        self._n_cut_short += cut_short
        if n_failed:
            self._outputs.append(output)

    def check(self) -> None:
        """Stop the stage if there are too many failures. The output of the tasks with failures is then removed.

        Assume that the tasks not added yet are as large. A first bad shard among many good ones then does
        not end the run.
        """
        said = self._excess(self._n_documents * self._n_tasks / max(self._n_added, 1))
        if not said:
            return
        share = self._config.max_share
        limit = f", more than quarantine.max_share = {share:g} allows" if share else ", and none may fail"
        way = ". Or use a larger share" if share else ""
        for path in self._outputs:
            path.unlink(missing_ok=True)
        folder = self._work / FOLDER / self._stage
        first = first_failed(max(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns))
        raise ConfigError(
            f"stage '{self._stage}' {said}{limit}. One of them: {first['id']} of {first['shard']} "
            f"({first['exception']}, {first['where']}). All are in {folder}. Mend the cause and run the same command "
            f"again: the tasks with failures then run again{way}"
        )

    def _excess(self, n_documents: float) -> str:
        """Describe how the failures exceed the limit, of about `n_documents` expected in all; "" if they do not."""
        share = self._config.max_share
        if self._n_cut_short > share * self._n_tasks:
            return f"could not read {self._n_cut_short:,} of {self._n_tasks:,} files to their end"
        are_all = self._n_failed >= n_documents > 0 and share < 1
        if self._n_failed > share * n_documents and (are_all or self._n_failed > self._config.min_documents):
            return f"failed on {self._n_failed:,} of about {n_documents:,.0f} documents"
        return ""


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
            except BaseException as error:
                if is_outside(error):
                    raise
                self.add(document, error, tally)
            self._n_seen += 1
            yield document, value

    def each_batch(
        self,
        batches: Iterable[list[D]],
        function: Callable[[list[D]], Sequence[T]],
        tally: Tally | None = None,
    ) -> Iterator[tuple[list[D], Sequence[T]]]:
        """Yield (documents, function(documents)) for each batch; if that fails, for each document separately."""
        for batch in batches:
            try:
                values = function(batch)
            except BaseException as error:
                if is_outside(error):
                    raise
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


def is_outside(error: BaseException) -> bool:
    """Return whether the machine caused an error, such as one without free threads, and not the document."""
    return isinstance(error, OUTSIDE) or passing_fault(error) is not None


def describe_error(error: BaseException) -> str:
    """Name an exception in one line."""
    said = " ".join(str(error).split())
    kind = type(error).__name__
    return whole_text(f"{kind}: {said}"[:_MAX_MESSAGE] if said else kind)


def read_quarantine(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries of a file of failed documents. DamagedShardError: it was damaged later."""
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
    """Return the rows of a shard's failed documents, from the files of stages that only read the shard."""
    return frozenset(entry["record"] for path in paths for entry in read_quarantine(path))
