"""The reading stage: turn the records of an input file into texts with the states of their labels."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.conversations.conversation import normalised
from data_prep.documents.counts import Tally
from data_prep.documents.quarantine import Quarantine
from data_prep.documents.records import Dropped, Origin
from data_prep.documents.shards import Document, content_id, whole_text, write_shard
from data_prep.documents.traces import write_trace
from data_prep.execution.tasks import Stage, TaskResult
from data_prep.inputs.config import InputConfig
from data_prep.inputs.counted import CountedFile
from data_prep.labels.config import LabelsConfig
from data_prep.readers.readers import read_fields
from data_prep.readers.remote_files import local_copy
from gpt.token_files.label_states import UNKNOWN, States, contradictions, record_states, vote, with_ancestors


@dataclass(frozen=True)
class LabelReadTask:
    """Settings of a reading task: how to read the file, the taxonomy, and how labellers are merged."""

    input: InputConfig
    labels: LabelsConfig


class LabelFault(Exception):
    """A record whose labels cannot be used. It is set aside. The message quotes no text."""


@dataclass
class _Lines:
    """The lines of one text: the states of each, and where each is."""

    text: str
    source_id: str
    rows: dict[str, States] = field(default_factory=dict)  # by labeller; those without a name by their position
    places: list[tuple[int, int]] = field(default_factory=list)  # (offset, bytes)


def label_read_task(reading: InputConfig, labels: LabelsConfig) -> LabelReadTask:
    """Settings of every task of a run, without those that other stages obey: a change there reads no file again."""
    kept = replace(labels, taxonomy="-", max_tokens=None, severities={}, digest="")
    return LabelReadTask(replace(reading, paths=("-",), path_lists=(), path_base=""), kept)


def read_file(config: LabelReadTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: an input file, or the stub of a remote one, to (shard, trace).

    The lines of a text are merged into one document: the last one of each labeller counts. A positive child makes its
    unknown ancestors positive. Drops: `no_text`, `no_label`, `contradictory_labels`, and `merged_line` for each further
    line of a text. Labels outside the taxonomy are set aside. Facts: those of `CountedFile`. Memory: the texts of the
    file.
    """
    with (
        local_copy(inputs[0], outputs[0].parent, max_bytes=config.input.max_download_bytes) as path,
        write_shard(outputs[0]) as write,
        write_trace(outputs[1]) as trace,
        Quarantine(READ.name, inputs, outputs) as quarantine,
    ):
        reading, found = Tally("read", trace), Tally(READ.name, trace)
        file, origin = CountedFile(path, inputs[0], reading, quarantine), Origin(path)
        texts: dict[str, _Lines] = {}
        for record in file.to_failure(read_fields(path, config.input)):
            if isinstance(record, Dropped):
                file.drop(record)
                continue
            file.keep(record.n_bytes)
            try:
                text, states = labels_of(record.values, config)
            except LabelFault as error:
                quarantine.add(Document(origin.position_id(record.offset), ""), error, found)
                continue
            if not text:
                found.drop("no_text", record.n_bytes, origin.position_id(record.offset))
                continue
            given = record.values.get(config.input.id_field)
            lines = texts.setdefault(text, _Lines(text, "" if given is None else str(given)[:200]))
            labeller = record.values.get("labeller")
            lines.rows[f"by {labeller}" if labeller else f"at {record.offset}"] = states  # the last of each labeller
            lines.places.append((record.offset, record.n_bytes))
        for lines in texts.values():
            _write(lines, config.labels, origin, found, write)
        return TaskResult([reading.counts(), found.counts()], file.facts())


def labels_of(values: Mapping[str, Any], config: LabelReadTask) -> tuple[str, States]:
    """The text, "" if it is null or blank, and the states (c,) of a record's labels.

    The labels are those of `labels`, or fields with the ids of categories. LabelFault: no field of a text, a label
    outside the taxonomy or with another value, or the labels of another version.
    """
    names, field_name = list(config.labels.categories), config.input.text_field
    text = values.get(field_name)
    if field_name not in values or not (text is None or isinstance(text, str)):
        raise LabelFault(f"no text in the field '{field_name}'; input.text_field names it")
    version = values.get("taxonomy")
    if version is not None and config.labels.version and version != config.labels.version:
        raise LabelFault(f"its taxonomy is not '{config.labels.version}'; migrate the file")
    try:
        found = record_states(values, names)
    except KeyError as error:
        raise LabelFault(f"'{error.args[0]}' is no category of {config.labels.version or 'the taxonomy'}") from None
    except (TypeError, ValueError) as error:
        raise LabelFault(str(error)) from None
    states = np.array([found.get(name, UNKNOWN) for name in names], dtype=np.int8)
    return whole_text(text).strip() and whole_text(text) if text else "", states


def text_document(text: str, states: States, source_id: str) -> Document:
    """The document that the stages pass on. Texts that differ in case or spaces only are in the same split."""
    own = content_id("t", text.encode()).partition(":")[2]
    group = content_id("labels", normalised(text).encode())
    return Document(f"{group}#{own}", text, {"states": "".join(map(str, states.tolist())), "source_id": source_id})


def states_of(document: Document) -> States:
    """The states (c,) of a document that this stage wrote."""
    return np.array([int(mark) for mark in document.metadata["states"]], dtype=np.int8)


def _write(lines: _Lines, config: LabelsConfig, origin: Origin, found: Tally, write: Any) -> None:
    states = vote(np.stack(list(lines.rows.values())), rule=config.merge)
    document = text_document(lines.text, with_ancestors(states, config.parents), lines.source_id)
    for offset, n_bytes in lines.places[1:]:
        found.drop("merged_line", n_bytes, origin.position_id(offset), detail=f"part of {document.id}")
    wrong = contradictions(states, config.parents)
    if wrong.any():
        names = [name for name, is_wrong in zip(config.categories, wrong.tolist(), strict=True) if is_wrong]
        found.drop("contradictory_labels", document.n_bytes, document.id, detail=f"{', '.join(names)}: parent negative")
    elif not config.keep_unlabelled and (states == UNKNOWN).all():
        found.drop("no_label", document.n_bytes, document.id)
    else:
        write(document)
        found.keep(document.n_bytes, document.n_bytes)


READ = Stage("labels", read_file, ignored_packages=("fsspec",))
