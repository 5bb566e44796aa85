"""The reading stage: turn the records of an input file into conversations, and drop all others."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.conversations.config import ConversationsConfig
from data_prep.conversations.conversation import Conversation, UnusableRecord, as_document
from data_prep.conversations.shapes import conversations_in, renamed, shape_of, unused_fields
from data_prep.documents.counts import Tally
from data_prep.documents.quarantine import Quarantine, is_outside
from data_prep.documents.records import Dropped, Origin, shown
from data_prep.documents.shards import Document, read_shard, write_shard
from data_prep.documents.traces import read_trace, write_trace
from data_prep.execution.tasks import Stage, TaskResult
from data_prep.inputs.config import InputConfig
from data_prep.inputs.counted import CountedFile
from data_prep.readers.readers import FieldRecord, read_fields
from data_prep.readers.remote_files import local_copy

_MAX_FIELDS = 50  # unused ones that are named
_SHOWN = 160  # characters of a dropped record


@dataclass(frozen=True)
class ReadTask:
    """Settings of a reading task: how to read the file, and which conversations to make of its records."""

    input: InputConfig
    conversations: ConversationsConfig


def read_task(reading: InputConfig, conversations: ConversationsConfig) -> ReadTask:
    """Settings of every task of a run, without those that other stages obey: a change there reads no file again."""
    kept = ConversationsConfig(
        conversations.kind,
        shape=conversations.shape,
        fields=conversations.fields,
        compare=conversations.compare,
        tie_margin=conversations.tie_margin,
    )
    return ReadTask(replace(reading, paths=("-",), path_lists=(), path_base=""), kept)


def read_file(config: ReadTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: an input file, or the stub of a remote one, to (shard, trace).

    Counts: `read` the records, `completions` the answers of rankings, `conversations` what the records hold. Facts:
    those of `CountedFile`; `shape`, the number of records by shape; `unused_fields`, the number of records by field.
    """
    unused: Counter[str] = Counter()
    shapes: Counter[str] = Counter()
    with (
        local_copy(inputs[0], outputs[0].parent, max_bytes=config.input.max_download_bytes) as path,
        write_shard(outputs[0]) as write,
        write_trace(outputs[1]) as trace,
        Quarantine(READ.name, inputs, outputs) as quarantine,
    ):
        reading, completions, found = (Tally(name, trace) for name in ("read", "completions", READ.name))
        file, origin = CountedFile(path, inputs[0], reading, quarantine), Origin(path)
        shape: str = "" if config.conversations.shape == "auto" else config.conversations.shape
        for record in file.to_failure(read_fields(path, config.input)):
            if isinstance(record, Dropped):
                file.drop(record)
                continue
            values = renamed(record.values, config.conversations.fields)
            own = shape_of(values)
            shape = shape or own
            if not own or own != shape:
                file.drop(_of_no_shape(record, origin, own, shape))
                continue
            file.keep(record.n_bytes)
            shapes[shape] += 1
            unused.update(unused_fields(values, shape))
            try:
                made = list(_documents(values, shape, record, config.conversations, origin, found, completions))
            except Exception as error:
                if is_outside(error):
                    raise
                quarantine.add(Document(origin.position_id(record.offset), ""), error, found)
                continue
            for document, _ in quarantine.each(made, write, found):
                found.keep(document.n_bytes, document.n_bytes)
        facts = {**file.facts(), "shape": dict(shapes), "unused_fields": dict(unused.most_common(_MAX_FIELDS))}
    counts = [reading.counts(), completions.counts(), found.counts()]
    if config.conversations.kind != "rankings":
        del counts[1]
    return TaskResult(counts, facts)


def conversations_of_file(
    path: Path, config: ConversationsConfig, left_out: Counter[str]
) -> Iterator[tuple[int, Conversation]]:
    """Yield (number of its record, from 1, conversation) of a local file in any shape, without a stage.

    Adds to `left_out` the records, conversations and answers that cannot be used, by reason.
    """
    for number, record in enumerate(read_fields(path, InputConfig(paths=(str(path),))), start=1):
        if isinstance(record, Dropped):
            left_out[record.reason] += 1
        elif not (shape := shape_of(record.values)):
            left_out["unknown_shape"] += 1
        else:
            for found, answers_left_out in conversations_in(record.values, shape, config):
                left_out.update(one.reason for one in answers_left_out)
                if isinstance(found, UnusableRecord):
                    left_out[found.reason] += 1
                else:
                    yield number, found


def describe_left_out(left_out: Counter[str]) -> str:
    """Write the reasons with their counts: "3 one_completion, 1 all_tied"."""
    return ", ".join(f"{n:,} {reason}" for reason, n in left_out.most_common()) or "it is empty"


def ids_in(path: Path, config: ReadTask) -> set[str]:
    """Return the ids of what a file holds: of its conversations, and of what is dropped when it is read."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder, "shard"), Path(folder, "trace")
        read_file(config, (path,), outputs)
        return {*(one.id for one in read_shard(outputs[0])), *(drop.id for drop in read_trace(outputs[1]))}


def _documents(
    values: dict[str, object],
    shape: str,
    record: FieldRecord,
    config: ConversationsConfig,
    origin: Origin,
    found: Tally,
    completions: Tally,
) -> Iterator[Document]:
    """Yield the documents of a record, and count what it holds besides."""
    for conversation, left_out in conversations_in(values, shape, config):
        if isinstance(conversation, UnusableRecord):
            beginning = shown(json.dumps(record.values, ensure_ascii=False), _SHOWN)
            about = "; ".join(filter(None, (conversation.detail, beginning)))
            drop = origin.drop(conversation.reason, record.n_bytes, record.offset, detail=about)
            found.drop(drop.reason, drop.n_bytes, drop.id, detail=drop.detail)
            continue
        assert config.compare is not None, "ConversationsConfig gives it a value"
        document = as_document(conversation, config.compare)
        for one in left_out:
            completions.drop(one.reason, one.n_bytes, document.id, detail=f"completion {one.number + 1}")
        for answer in conversation.answers:
            n_bytes = len(answer.text.encode())
            completions.keep(n_bytes, n_bytes)
        yield document


def _of_no_shape(record: FieldRecord, origin: Origin, own: str, shape: str) -> Dropped:
    names = ", ".join(shown(str(key), 60) for key in list(record.values)[:20]) or "nothing"
    if not own:
        return origin.drop("unknown_shape", record.n_bytes, record.offset, detail=f"it has: {names}")
    detail = f"{own} in a file of {shape}"
    return origin.drop("other_shape", record.n_bytes, record.offset, detail=detail)


READ = Stage("conversations", read_file, ignored_packages=("fsspec",))
