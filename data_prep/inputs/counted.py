"""Count the records of an input file, and collect the facts about its unread parts, for the stages that read files."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from data_prep.documents.counts import Tally
from data_prep.documents.losses import estimate_loss
from data_prep.documents.quarantine import CUT_SHORT, REASON, Quarantine, describe_error, is_outside
from data_prep.documents.records import Dropped, Origin, Unread
from data_prep.documents.shards import Document
from data_prep.readers.readers import NOT_UTF8
from data_prep.readers.remote_files import STUB_ENDING, read_stub
from data_prep.readers.unpackers import ReaderFault

T = TypeVar("T")


class CountedFile:
    """The records of one input file while they are read; `path` is its local copy, `source` the task's input."""

    def __init__(self, path: Path, source: Path, reading: Tally, quarantine: Quarantine) -> None:
        self._path, self._reading, self._quarantine = path, reading, quarantine
        self._name = read_stub(source).url if source.suffix == STUB_ENDING else str(source)
        self._unread: list[Dropped] = []

    def to_failure(self, records: Iterable[T]) -> Iterator[T | Dropped]:
        """Yield records. If the reader itself fails, record that, and yield a last record for the rest of the file.

        Its size is unknown if the reader cannot tell its position, as in Parquet files.
        """
        try:
            yield from records
        except BaseException as error:
            if is_outside(error):
                raise
            rest = error.unread_bytes if isinstance(error, ReaderFault) else 0
            cause = error.__cause__ or error
            record = Origin(self._path).drop(REASON, 0, "rest", detail=describe_error(cause), unread=Unread(rest))
            self._quarantine.add(Document(record.id, ""), cause)
            yield record

    def drop(self, record: Dropped) -> None:
        """Count a record that gives no document."""
        self._reading.drop(record.reason, record.n_bytes, record.id, detail=record.detail)
        if record.unread is not None:
            self._unread.append(record)

    def keep(self, n_bytes: int) -> None:
        """Count a record that can be read."""
        self._reading.keep(n_bytes, n_bytes)

    def facts(self) -> dict[str, Any]:
        """`records` that were read, of `read_bytes` of the file; with those there are of `unread`, the parts that
        cannot be read, NOT_UTF8, the documents in another encoding, and CUT_SHORT, if the reader failed."""
        counts, n_bytes = self._reading.counts(), self._path.stat().st_size
        n_other = counts.dropped.get(NOT_UTF8, 0)
        lost = estimate_loss(self._name, n_bytes, self._unread, n_read=counts.documents_out)
        n_unread = 0 if lost is None else lost.unread_bytes
        facts: dict[str, Any] = {"records": counts.documents_out, "read_bytes": n_bytes - n_unread}
        if n_other:
            facts[NOT_UTF8] = {"path": self._name, "documents": n_other}
        if lost is not None:
            facts["unread"] = asdict(lost)
        if any(one.reason == REASON for one in self._unread):
            facts[CUT_SHORT] = True
        return facts
