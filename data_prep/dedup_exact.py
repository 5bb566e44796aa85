"""Exact de-duplication: of documents with the same text one stays; never compares texts that differ in a letter.

Three steps: digests of each shard, one choice over all digests, and the removal from each shard. Which copy stays
depends on the documents alone: the one with the smallest hash of its id.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.counts import Tally
from data_prep.documents import encode_line, keyed_hash, read_shard, write_shard
from data_prep.engine import Result, Stage
from data_prep.files import read_array, write_array
from data_prep.traces import write_trace
from gpt.errors import import_extra

# 40 bytes a document: what the choice needs to know of it.
ROW = np.dtype([("text", "<u8", 2), ("order", "<u8"), ("line", "<u8"), ("shard", "<u4"), ("row", "<u4")])


@dataclass(frozen=True)
class ExactConfig:
    """Section [dedup_exact]. With `ignore_case_and_space`, texts that differ only in case and blanks are the same."""

    enabled: bool = True
    ignore_case_and_space: bool = False


@dataclass(frozen=True)
class Removal:
    """What the removal step is called in the table, and why its documents go."""

    step: str
    reason: str


def digest_texts(config: ExactConfig, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> Result:
    """Stage function: a shard to one ROW for each of its documents."""
    xxhash = import_extra("xxhash", extra="data")
    rows = []
    for number, document in enumerate(read_shard(inputs[0])):
        text = " ".join(document.text.lower().split()) if config.ignore_case_and_space else document.text
        digest = xxhash.xxh3_128_intdigest(text.encode())
        order = keyed_hash(document.id, key="exact")
        line = xxhash.xxh3_64_intdigest(encode_line(document))
        rows.append(((digest >> 64, digest & (2**64 - 1)), order, line, 0, number))
    write_array(outputs[0], np.array(rows, dtype=ROW))
    return Result()


def choose_copies(config: ExactConfig, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> Result:
    """Stage function: the digests of all shards to the row numbers to remove from each, in one sort in memory."""
    shards = [read_array(path) for path in inputs]
    for number, shard in enumerate(shards):
        shard["shard"] = number
    rows: npt.NDArray[Any] = np.concatenate(shards)
    rows = rows[np.lexsort((rows["line"], rows["order"], rows["text"][:, 1], rows["text"][:, 0]))]
    same = np.zeros(len(rows), dtype=bool)  # same text as the row before, which is the copy that stays or goes with it
    same[1:] = (rows["text"][1:] == rows["text"][:-1]).all(axis=1)
    removed = rows[same]
    for number, path in enumerate(outputs):
        write_array(path, np.sort(removed["row"][removed["shard"] == number]))
    return Result()


def remove_rows(config: Removal, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> Result:
    """Stage function: (shard, row numbers to remove) to (the shard without them, trace)."""
    shard, list_path = inputs
    removed = set(read_array(list_path).tolist())
    with write_shard(outputs[0]) as write, write_trace(outputs[1]) as trace:
        tally = Tally(config.step, trace)
        for number, document in enumerate(read_shard(shard)):
            if number in removed:
                tally.drop(config.reason, document.n_bytes, document.id)
            else:
                tally.keep(document.n_bytes, document.n_bytes)
                write(document)
    return Result([tally.counts()])


DIGESTS = Stage("exact_digests", digest_texts, ("dedup_exact", "documents", "traces"), ("xxhash", "zstandard"))
CHOICE = Stage("exact_choice", choose_copies, ("dedup_exact",))
REMOVAL = Stage("dedup_exact", remove_rows, ("dedup_exact", "documents", "traces"), ("zstandard",))
COPY = Removal("dedup_exact", "duplicate")
