"""Draw the classifier's training sample and count its words, independently of how the corpora are sharded.

The sample has at most a given number of documents of each class: those with the smallest hashes of their ids, in the
order of these hashes. The texts are never in memory together.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.documents.arrays import read_array, write_array
from data_prep.documents.quarantine import NumberedDocument, Quarantine
from data_prep.documents.shards import keyed_hash, read_shard
from data_prep.execution.tasks import Stage, TaskResult
from data_prep.filters.quality_classifier import term_counts
from gpt.errors import import_extra

# A document of the sample: hash of its id, hash of its text, its draw for holding out, and the slice of its counts.
ROW = np.dtype([("order", "<u8"), ("text", "<u8"), ("hold_out", "<u8"), ("start", "<i8"), ("stop", "<i8")])
Rows = npt.NDArray[Any]
KINDS = ("negative", "positive")


@dataclass(frozen=True)
class SampleConfig:
    """Use at most `max_documents` of each class: those whose ids have the smallest hashes with `seed`."""

    seed: int
    max_documents: int


@dataclass(frozen=True)
class SampleGatherTask:
    """The inputs are three files per shard, those of the negative shards first."""

    sample: SampleConfig
    n_negative_shards: int


def count_terms(config: SampleConfig, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: a shard to (rows, buckets, counts) of its documents that can be in the sample.

    Memory: 8 bytes per document of the shard, and a row for each that is taken. Reads the shard twice.
    """
    xxhash = import_extra("xxhash", extra="data")
    key = f"sample {config.seed}"
    orders = np.fromiter((keyed_hash(document.id, key=key) for document in read_shard(inputs[0])), dtype=np.uint64)
    limit = int(np.sort(orders)[: config.max_documents].max(initial=0))
    rows: list[tuple[int, ...]] = []
    position = 0

    def numbered() -> Iterator[NumberedDocument]:
        for row, document in zip(range(len(orders)), read_shard(inputs[0]), strict=True):
            yield NumberedDocument(document.id, document.text, document.metadata, row)

    def count(document: NumberedDocument) -> tuple[int, Any] | None:
        order = int(orders[document.row])
        return None if order > limit else (order, term_counts(document.text))

    with (
        open(outputs[1], "wb") as bucket_file,
        open(outputs[2], "wb") as count_file,
        Quarantine(FEATURES.name, inputs, outputs) as quarantine,
    ):
        for document, found in quarantine.each_or_none(numbered(), count):
            if found is None:
                continue
            order, (buckets, counts) = found
            bucket_file.write(buckets.astype("<i4").tobytes())
            count_file.write(counts.astype("<i4").tobytes())
            text_hash = xxhash.xxh3_64_intdigest(document.text.encode())
            hold_out = keyed_hash(document.id, key=f"held out {config.seed}")
            rows.append((order, text_hash, hold_out, position, position + len(buckets)))
            position += len(buckets)
    write_array(outputs[0], np.array(rows, dtype=ROW))
    return TaskResult(facts={"documents": len(orders)})


def gather_sample(config: SampleGatherTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: (rows, buckets, counts) of all shards to one (rows, labels, buckets, counts) in sample order.

    Equal texts of one class count once. Texts without words are left out, since they would only shift the bias.
    Memory: two rows for each document of the sample.
    """
    tables = inputs[0::3]
    kinds = (range(config.n_negative_shards), range(config.n_negative_shards, len(tables)))
    parts = [_choose(tables, numbers, config.sample.max_documents) for numbers in kinds]
    rows, shard = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    positive = np.repeat([False, True], [len(part[0]) for part in parts])
    order = np.lexsort((positive, rows["text"], rows["order"]))
    rows, shard, positive = rows[order], shard[order], positive[order]
    for output, sources in ((outputs[2], inputs[1::3]), (outputs[3], inputs[2::3])):
        mapped = {number: map_numbers(sources[number]) for number in set(shard.tolist())}
        with open(output, "wb") as file:
            for row, number in zip(rows, shard.tolist(), strict=True):
                file.write(mapped[number][row["start"] : row["stop"]].tobytes())
    lengths = rows["stop"] - rows["start"]
    rows["stop"] = np.cumsum(lengths)
    rows["start"] = rows["stop"] - lengths
    write_array(outputs[0], rows)
    write_array(outputs[1], positive)
    return TaskResult()


def _choose(tables: tuple[Path, ...], numbers: range, limit: int) -> tuple[Rows, npt.NDArray[np.int64]]:
    """Return (the rows with the smallest id hashes, the shard of each): equal texts once, none without words."""
    rows, shard = np.empty(0, ROW), np.empty(0, np.int64)
    for number in numbers:
        more = read_array(tables[number])
        rows, shard = np.concatenate([rows, more]), np.append(shard, np.full(len(more), number))
        best = np.lexsort((rows["text"], rows["order"]))[:limit]
        rows, shard = rows[best], shard[best]
    _, first = np.unique(rows["text"], return_index=True)
    first = first[rows["stop"][first] > rows["start"][first]]
    return rows[first], shard[first]


def map_numbers(path: Path) -> npt.NDArray[np.int32]:
    """Map a file of 32-bit numbers as a read-only array."""
    return np.memmap(path, "<i4", "r") if path.stat().st_size else np.empty(0, "<i4")


FEATURES = Stage("quality_features", count_terms)
SAMPLE = Stage("quality_sample", gather_sample)
