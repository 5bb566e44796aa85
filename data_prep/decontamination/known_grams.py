"""Index the n-grams of evaluation sets, and find the documents of a shard that have them.

The removal from the corpus (decontaminate.py) and the analysis of the examples (overlap.py) share these stages.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.corpus.split import SplitConfig
from data_prep.decontamination.evaluation_sets import EvaluationSet, Example, ending_of, find_set_files, read_examples
from data_prep.decontamination.ngrams import GramIndex, count_words, find_in_each, join, scan_grams
from data_prep.documents.arrays import read_array, write_array
from data_prep.documents.quarantine import NumberedDocument, Quarantine
from data_prep.documents.shards import Document, read_shard, write_shard
from data_prep.execution.shard_runs import ShardRun
from data_prep.execution.tasks import FinishedTask, Stage, Task, TaskResult
from gpt.errors import ConfigError

# A gram of an example: its index in the sorted numbers, and its first and last + 1 character in the example's text.
GRAM = np.dtype([("gram", "<u4"), ("example", "<u4"), ("set", "<u2"), ("start", "<u4"), ("end", "<u4")])
HIT = np.dtype([("row", "<u4"), ("gram", "<u4")])  # a document of a shard has a gram, at least once
_BATCH_CHARACTERS = 1 << 16


@dataclass(frozen=True)
class LengthRule:
    """N, the words of a gram, for each set: a percentile of its examples' lengths, clamped to two bounds."""

    min_words: int
    max_words: int
    percentile: float = 5.0


@dataclass(frozen=True)
class IndexTask:
    """The sets, the number of input files of each, the rule for N, and the endings by which the files are read."""

    sets: tuple[EvaluationSet, ...]
    n_files: tuple[int, ...]
    rule: LengthRule
    endings: tuple[str, ...] = ()


@dataclass(frozen=True)
class SearchTask:
    """The lengths of the known grams; with `split`, only documents of the training split count."""

    lengths: tuple[int, ...]
    split: SplitConfig | None = None


@dataclass(frozen=True)
class KnownGrams:
    """Output of the index stage: the grams' sorted numbers, a GRAM per occurrence, and the examples as a shard."""

    numbers: Path
    grams: Path
    examples: Path
    sets: tuple[dict[str, Any], ...]  # a set: name, examples, too_short, n_words, grams

    @property
    def lengths(self) -> tuple[int, ...]:
        """All N of the sets, sorted."""
        return tuple(sorted({int(about["n_words"]) for about in self.sets}))


def index_sets(run: ShardRun, sets: tuple[EvaluationSet, ...], rule: LengthRule, *, where: str) -> KnownGrams:
    """Run the index stage. `where` names the setting of the sets in errors. ConfigError: as `find_set_files`."""
    files = find_set_files(sets, where=where)
    folder = run.workspace.folder / INDEX.name
    outputs = (folder / "numbers.npy", folder / "grams.npy", folder / "examples.jsonl.zst")
    inputs = tuple(path for paths in files for path in paths)
    config = IndexTask(sets, tuple(map(len, files)), rule, tuple(map(ending_of, inputs)))
    (finished,) = run.tasks(INDEX, [Task(config, inputs, outputs)])
    return KnownGrams(*outputs, tuple(finished.facts["sets"]))


def search(run: ShardRun, stage: Stage, config: Any, known: KnownGrams, shards: dict[str, Path]) -> list[FinishedTask]:
    """Run a search stage over shards or other files; each task writes an array of HITs."""
    outputs = run.arrays(stage, list(shards))
    return run.tasks(stage, [Task(config, (path, known.numbers), (outputs[name],)) for name, path in shards.items()])


def index_examples(config: IndexTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: the files of all sets to (numbers, GRAM rows, examples). Facts: `sets`.

    ConfigError: a record cannot be read, or a set has no example.
    """
    files = list(inputs)
    numbers, rows, about = [np.zeros(0, np.uint64)], [np.zeros(0, GRAM)], []
    n_examples = 0
    with write_shard(outputs[2]) as write:
        for set_index, (one, n_files) in enumerate(zip(config.sets, config.n_files, strict=True)):
            paths, files = files[:n_files], files[n_files:]
            lengths = [count_words(example.text) for example in read_examples(one, paths)]
            if not lengths:  # or the set would count as clean
                raise ConfigError(f"evaluation set '{one.name}': no example in {', '.join(map(str, paths))}")
            n = gram_length(lengths, config.rule, synthetic=one.synthetic)
            distinct = [np.zeros(0, np.uint64)]
            for example in read_examples(one, paths):
                write(Document(example.id, example.text, {"set": one.name, "index": example.index}))
                gram_numbers, gram_rows = _rows(example, n)
                gram_rows["example"], gram_rows["set"] = n_examples, set_index
                numbers.append(gram_numbers)
                rows.append(gram_rows)
                distinct.append(gram_numbers)
                n_examples += 1
            n_grams = len(np.unique(np.concatenate(distinct)))
            too_short = sum(length < n for length in lengths)
            about.append(
                {"name": one.name, "examples": len(lengths), "too_short": too_short, "n_words": n, "grams": n_grams}
            )
    known, indices = np.unique(np.concatenate(numbers), return_inverse=True)
    assert len(known) < 2**32, "more grams than 32 bits can number"
    table: npt.NDArray[Any] = np.concatenate(rows)
    table["gram"] = indices
    write_array(outputs[0], known)
    write_array(outputs[1], table)
    return TaskResult([], {"sets": about})


def gram_length(lengths: list[int], rule: LengthRule, *, synthetic: bool) -> int:
    """Return N of a set: the percentile of its examples' lengths in words (arXiv 2005.14165, appendix C).

    N is at most `max_words` and, if the set is not synthetic, at least `min_words`.
    """
    typical = int(np.percentile(lengths, rule.percentile, method="lower")) if lengths else rule.max_words
    return min(max(typical, 1 if synthetic else rule.min_words), rule.max_words)


def search_shard(config: SearchTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: (shard, known numbers) to its HITs, sorted. Facts: documents and characters searched."""
    split = config.split
    chosen = (
        NumberedDocument(document.id, document.text, document.metadata, row)
        for row, document in enumerate(read_shard(inputs[0]))
        if split is None or not split.is_validation(document.id)
    )
    return find_hits(chosen, config.lengths, inputs, outputs)


def find_hits(
    documents: Iterable[NumberedDocument],
    lengths: tuple[int, ...],
    inputs: tuple[Path, ...],
    outputs: tuple[Path, ...],
) -> TaskResult:
    """Write the HITs of documents to the first output, sorted; the second input has the numbers of the known grams."""
    index = GramIndex.of(np.load(inputs[1], mmap_mode="r", allow_pickle=False))  # mapped: workers share its memory
    hits = [np.zeros(0, np.uint64)]
    n_documents = n_characters = 0  # of those that failed too

    def batches() -> Iterator[list[NumberedDocument]]:
        nonlocal n_documents, n_characters
        for batch in _batches(documents):
            n_documents += len(batch)
            n_characters += sum(len(document.text) for document in batch)
            yield batch

    def search_batch(batch: list[NumberedDocument]) -> list[npt.NDArray[np.uint64]]:
        rows, found = find_in_each([document.text for document in batch], index, lengths)
        return [found.numbers[rows == number] for number in range(len(batch))]

    with Quarantine(SEARCH.name, inputs, outputs) as quarantine:
        for batch, numbers in quarantine.each_batch(batches(), search_batch):
            for document, own in zip(batch, numbers, strict=True):
                if len(own):
                    hits.append(np.unique(np.uint64(document.row) << np.uint64(32) | own))
    pairs = np.concatenate(hits)
    table = np.zeros(len(pairs), HIT)
    table["row"], table["gram"] = pairs >> np.uint64(32), pairs & np.uint64(0xFFFFFFFF)
    write_array(outputs[0], table)
    return TaskResult([], {"documents": n_documents, "characters": n_characters})


def add_documents(documents: npt.NDArray[np.int64], hits: Path) -> None:
    """Add to each gram the number of its documents in one array of HITs; `documents` (n_grams,) changes in place."""
    grams, counts = np.unique(read_array(hits)["gram"], return_counts=True)
    documents[grams] += counts


def _rows(example: Example, n: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[Any]]:
    grams = join(scan_grams(example.text, (n,)))
    table = np.zeros(len(grams), GRAM)
    table["start"], table["end"] = grams.starts, grams.ends
    return grams.numbers, table


def _batches(documents: Iterable[NumberedDocument]) -> Iterator[list[NumberedDocument]]:
    batch: list[NumberedDocument] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size > _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


INDEX = Stage("evaluation_index", index_examples)
SEARCH = Stage("evaluation_search", search_shard)
