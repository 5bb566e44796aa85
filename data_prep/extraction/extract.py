"""The extraction stage: turn the records of an input file into plain text, and drop empty ones."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.documents.counts import Tally
from data_prep.documents.quarantine import Quarantine
from data_prep.documents.records import Dropped, Page
from data_prep.documents.shards import Document, write_shard
from data_prep.documents.traces import write_trace
from data_prep.execution.tasks import Stage, TaskResult
from data_prep.extraction.page_sandbox import Failure, PageSandbox
from data_prep.extraction.page_text import ExtractConfig
from data_prep.inputs.config import InputConfig
from data_prep.inputs.counted import CountedFile
from data_prep.readers.readers import read_records
from data_prep.readers.remote_files import local_copy

# Size of a batch for the child process: sending it costs little, and two of them fit in memory.
_BATCH_PAGES, _BATCH_BYTES = 32, 1 << 20

Record = Page | Document | Dropped


@dataclass(frozen=True)
class ExtractTask:
    """Settings of an extraction task: how to read the file and how to extract."""

    input: InputConfig
    extract: ExtractConfig


def extract_task(reading: InputConfig, extract: ExtractConfig) -> ExtractTask:
    """Settings of every task of a run, without the list of files: a new file must not make the others run again."""
    return ExtractTask(replace(reading, paths=("-",), path_lists=(), path_base="", source="files"), extract)


def extract_file(config: ExtractTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: an input file, or the stub of a remote one, to (shard, trace); counts `read` and `extract`.

    Facts: those of `CountedFile`.
    """
    with (
        local_copy(inputs[0], outputs[0].parent, max_bytes=config.input.max_download_bytes) as path,
        write_shard(outputs[0]) as write,
        write_trace(outputs[1]) as trace,
        Quarantine("extract", inputs, outputs) as quarantine,
    ):
        reading, extracting = Tally("read", trace), Tally("extract", trace)
        file = CountedFile(path, inputs[0], reading, quarantine)
        records: Iterator[Record] = file.to_failure(read_records(path, config.input))
        for record, text in extract_texts(records, config.extract):
            if isinstance(record, Dropped):
                file.drop(record)
                continue
            n_bytes = len(record.content) if isinstance(record, Page) else record.n_bytes
            file.keep(n_bytes)
            if isinstance(text, Failure):
                extracting.drop(text.reason, n_bytes, record.id, detail=text.detail)
            elif not text.strip():
                extracting.drop("empty", n_bytes, record.id)
            else:
                made = [Document(record.id, text, record.metadata)]
                for document, _ in quarantine.each(made, write, extracting):
                    extracting.keep(n_bytes, document.n_bytes)
        facts = file.facts()
    return TaskResult([reading.counts(), extracting.counts()], facts)


def extract_texts(records: Iterable[Record], config: ExtractConfig) -> Iterator[tuple[Record, str | Failure]]:
    """Yield each record, in order, with its text or the reason why it has none.

    Only pages go through the child process. While it works on one batch, this process reads the next.
    """
    with PageSandbox(config) as sandbox:
        waiting: list[Record] = []
        for batch in _batches(records):
            yield from _collected(waiting, sandbox)
            sandbox.submit([record for record in batch if isinstance(record, Page)])
            waiting = batch
        yield from _collected(waiting, sandbox)


def _collected(batch: list[Record], sandbox: PageSandbox) -> Iterator[tuple[Record, str | Failure]]:
    texts = iter(sandbox.collect())
    for record in batch:
        if isinstance(record, Page):
            yield record, next(texts)
        else:
            yield record, record.text if isinstance(record, Document) else ""


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    n_bytes = n_pages = 0
    for record in records:
        batch.append(record)
        n_pages += isinstance(record, Page)
        n_bytes += len(record.content) if isinstance(record, Page) else record.n_bytes
        if n_pages == _BATCH_PAGES or n_bytes >= _BATCH_BYTES or len(batch) == 10 * _BATCH_PAGES:
            yield batch
            batch, n_bytes, n_pages = [], 0, 0
    yield batch


def extract_stage(config: ExtractConfig) -> Stage:
    """The stage, which depends on the libraries of the chosen method only."""
    if config.method == "resiliparse":
        return EXTRACT
    return replace(EXTRACT, packages=("lxml", "justext", "courlan", "htmldate"), ignored_packages=_FETCHING)


# fsspec brings remote files here, whose size is checked: no version of it can change a text.
_FETCHING = ("fsspec",)
EXTRACT = Stage("extract", extract_file, ignored_packages=(*_FETCHING, "trafilatura"))
