"""The reading stage: turn the records of an input file into conversations, and drop all others."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.conversations.config import ConversationsConfig
from data_prep.conversations.conversation import Conversation, UnusableRecord, as_document
from data_prep.conversations.ranking import LeftOut, can_join, is_pair, join_pairs
from data_prep.conversations.shapes import conversations_in, renamed, shape_of, unused_fields
from data_prep.documents.counts import Tally
from data_prep.documents.quarantine import Quarantine, is_outside
from data_prep.documents.records import Dropped, Origin, shown
from data_prep.documents.shards import Document, write_shard
from data_prep.documents.traces import write_trace
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
        join_pairs=conversations.join_pairs,
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
        making = _Making(config.conversations, origin, found, completions)
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
                made = list(making.documents(values, shape, record))
            except Exception as error:
                if is_outside(error):
                    raise
                quarantine.add(Document(origin.position_id(record.offset), ""), error, found)
                continue
            for document, _ in quarantine.each(made, write, found):
                found.keep(document.n_bytes, document.n_bytes)
        for document, _ in quarantine.each(list(making.joined()), write, found):
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


class _Making:
    """Makes the documents of a file's records in turn, and counts what the records hold besides.

    `pairs` wait for others of the same prompt, each with the position of its record.
    """

    def __init__(self, config: ConversationsConfig, origin: Origin, found: Tally, completions: Tally) -> None:
        self.config, self.origin, self.found, self.completions = config, origin, found, completions
        self.joins = config.join_pairs and config.kind == "rankings"
        self.pairs: list[tuple[Conversation, int]] = []

    def documents(self, values: dict[str, object], shape: str, record: FieldRecord) -> Iterator[Document]:
        """Yield the documents that are complete with this record."""
        for conversation, left_out in conversations_in(values, shape, self.config):
            if isinstance(conversation, UnusableRecord):
                self._drop(conversation, record)
                continue
            if self.joins and not can_join([pair for pair, _ in self.pairs], conversation):
                yield from self.joined()
            if self.joins and is_pair(conversation) and not left_out:
                self.pairs.append((conversation, record.offset))
                continue
            yield self._document(conversation, left_out)

    def joined(self) -> Iterator[Document]:
        """Yield the documents of the pairs that wait, and count the pairs that became part of another's."""
        pairs, self.pairs = self.pairs, []
        for ranking, members in join_pairs([pair for pair, _ in pairs]):
            document = self._document(ranking, ())
            for pair, offset in (pairs[i] for i in members[1:]):
                n_bytes = self._as_document(pair).n_bytes
                drop = self.origin.drop("joined_pair", n_bytes, offset, detail=f"part of {document.id}")
                self.found.drop(drop.reason, drop.n_bytes, drop.id, detail=drop.detail)
            yield document

    def _document(self, conversation: Conversation, left_out: Sequence[LeftOut]) -> Document:
        document = self._as_document(conversation)
        for one in left_out:
            self.completions.drop(one.reason, one.n_bytes, document.id, detail=f"completion {one.number + 1}")
        for answer in conversation.answers:
            n_bytes = len(answer.text.encode())
            self.completions.keep(n_bytes, n_bytes)
        return document

    def _as_document(self, conversation: Conversation) -> Document:
        assert self.config.compare is not None, "ConversationsConfig gives it a value"
        return as_document(conversation, self.config.compare)

    def _drop(self, error: UnusableRecord, record: FieldRecord) -> None:
        beginning = shown(json.dumps(record.values, ensure_ascii=False), _SHOWN)
        about = "; ".join(filter(None, (error.detail, beginning)))
        drop = self.origin.drop(error.reason, record.n_bytes, record.offset, detail=about)
        self.found.drop(drop.reason, drop.n_bytes, drop.id, detail=drop.detail)


def _of_no_shape(record: FieldRecord, origin: Origin, own: str, shape: str) -> Dropped:
    names = ", ".join(shown(str(key), 60) for key in list(record.values)[:20]) or "nothing"
    if not own:
        return origin.drop("unknown_shape", record.n_bytes, record.offset, detail=f"it has: {names}")
    detail = f"{own} in a file of {shape}"
    return origin.drop("other_shape", record.n_bytes, record.offset, detail=detail)


READ = Stage("conversations", read_file, ignored_packages=("fsspec",))
