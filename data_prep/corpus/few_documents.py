"""Give each split a document, where by chance one of few documents may be in none."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_prep.corpus.split import SplitConfig
from data_prep.documents.arrays import read_array, write_array
from data_prep.documents.shards import parent_id, read_shard
from data_prep.execution.shard_runs import ShardRun, Shards
from data_prep.execution.tasks import Stage, Task, TaskResult
from gpt.errors import ConfigError

SAME_SPLIT = (
    'and documents of one id go to one split. Name a field whose values differ with input.id_field, or set it to "": '
    "then the ids come from the texts"
)
# With so many documents expected in the smaller split, the chance that it has none is below 1e-8.
ENOUGH = 20


def find_ends(config: SplitConfig, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: a shard to the smallest and the largest number that the split draws for its documents.

    Facts: the number of documents that are no pieces of another, and the id of one of them, "" if there is none.
    """
    ids = [document.id for document in read_shard(inputs[0])]
    draws, whole = [config.draw(name) for name in ids], [name for name in ids if name == parent_id(name)]
    ends = [min(draws), max(draws)] if draws else []
    write_array(outputs[0], np.array(ends, dtype=np.uint64))
    return TaskResult(facts={"whole": len(whole), "id": whole[0] if whole else ""})


def with_both_splits(run: ShardRun, split: SplitConfig, shards: Shards) -> SplitConfig:
    """Return the split, or one with a share that leaves a document for each split.

    ConfigError: there is one document, or all have one id.
    Only few documents are looked at. With a plan, whose stages are open, the split stays.
    """
    n_documents = run.counts[-1].documents_out if run.counts else ENOUGH * 10**9
    if n_documents * min(split.validation_fraction, 1 - split.validation_fraction) >= ENOUGH:
        return split
    ends = run.arrays(SPLIT_ENDS, list(shards))
    finished = run.tasks(SPLIT_ENDS, [Task(split, (path,), (ends[name],)) for name, path in shards.items()])
    if not all(path.exists() for path in ends.values()):
        return split
    run.workspace.check(list(ends.values()))
    draws = [int(number) for path in ends.values() for number in read_array(path)]
    smallest, largest = min(draws), max(draws)
    if smallest == largest and (n_whole := sum(task.facts["whole"] for task in finished)) > 1:
        name = next(task.facts["id"] for task in finished if task.facts["id"])
        raise ConfigError(f"all {n_whole:,} documents have the id {name!r}, {SAME_SPLIT}")
    if smallest == largest:
        raise ConfigError(
            "there is one document, and training and validation need one each. Set input.text_split_bytes or "
            "input.text_separator, which cut text files into documents, or give more documents"
        )
    share = split.validation_fraction
    if smallest >= share * 2**64:
        share = math.nextafter(smallest / 2**64, 1.0)
    elif largest < share * 2**64:
        share = math.nextafter(largest / 2**64, 0.0)
    if share != split.validation_fraction:
        run.workspace.say(
            f"output.validation_fraction = {split.validation_fraction} of {n_documents:,} documents leaves a split "
            f"without any; {share:.4f} is used, which gives it one"
        )
    return replace(split, validation_fraction=share)


SPLIT_ENDS = Stage("split_ends", find_ends)
