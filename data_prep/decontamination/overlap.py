"""Marks the examples of evaluation sets that occur in a corpus, as appendix C of the GPT-3 paper; changes no corpus.

arXiv 2005.14165: an example is dirty when any N-gram of it occurs in any training document, else clean. N is, for each
set, the 5th percentile of its examples' lengths in words, at most 13 and, for sets that are not synthetic, at least 8.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.corpus.corpus import read_corpus
from data_prep.corpus.split import SplitConfig
from data_prep.decontamination.evaluation_sets import EvaluationSet
from data_prep.decontamination.known_grams import (
    LengthRule,
    SearchTask,
    add_documents,
    find_hits,
    index_sets,
    search,
    search_shard,
)
from data_prep.documents.arrays import read_array
from data_prep.documents.records import Page
from data_prep.documents.shards import Document, read_shard
from data_prep.execution.files import disk_errors, temporary_for
from data_prep.execution.progress import ProgressBars
from data_prep.execution.shard_runs import ShardRun, read_steps
from data_prep.execution.tasks import FinishedTask, Stage, Task, TaskResult
from data_prep.execution.workspace import Workspace
from data_prep.readers.readers import InputConfig, find_inputs, local_inputs, read_records
from data_prep.readers.remote_files import local_copy
from gpt.errors import ConfigError

EXAMPLES_FILE, SUMMARY_FILE = "examples.jsonl", "overlap.json"


@dataclass(frozen=True)
class TrainingConfig:
    """Section [training]: what the model is or was trained on.

    `corpora`: corpus folders that `triaxial prepare` made; their validation documents do not count. `works`: their work
    folders in the same order, where `output.work` of their recipes is not `FOLDER/work`. `paths`: text files, patterns.
    """

    corpora: tuple[Path, ...] = ()
    works: tuple[Path, ...] = ()
    paths: tuple[str, ...] = ()
    text_field: str = "text"
    id_field: str = "id"
    text_separator: str = ""

    def __post_init__(self) -> None:
        if not self.corpora and not self.paths:
            raise ConfigError("training: give corpora (folders that `triaxial prepare` made) or paths (text files)")
        if self.works and len(self.works) != len(self.corpora):
            raise ConfigError(
                f"training.works names {len(self.works)} folders for {len(self.corpora)} corpora; "
                "give one for each, or none"
            )


@dataclass(frozen=True)
class AnalysisConfig:
    """Section [overlap]: the sets, and N: `percentile` of the lengths, from `min_words` (not of synthetic sets) to
    `max_words`."""

    sets: tuple[EvaluationSet, ...] = ()
    min_words: int = 8
    max_words: int = 13
    percentile: float = 5.0

    def __post_init__(self) -> None:
        if not self.sets:
            raise ConfigError("overlap.sets is empty; name at least one evaluation set in [[overlap.sets]]")
        if not 1 <= self.min_words <= self.max_words:
            raise ConfigError(
                f"overlap.min_words = {self.min_words} must lie between 1 and overlap.max_words = {self.max_words}"
            )
        if not 0 <= self.percentile <= 100:
            raise ConfigError(f"overlap.percentile = {self.percentile} must lie between 0 and 100")


@dataclass(frozen=True)
class OverlapOutput:
    """Section [output]: the folder of the results; its subfolder "work" makes a second run quick and may be deleted."""

    folder: Path


@dataclass(frozen=True)
class OverlapConfig:
    """A recipe of `triaxial prepare overlap`."""

    training: TrainingConfig
    output: OverlapOutput
    overlap: AnalysisConfig = field(default_factory=AnalysisConfig)


@dataclass(frozen=True)
class TextTask:
    """Search in text files: the lengths of the known grams, and how the files are read."""

    lengths: tuple[int, ...]
    input: InputConfig


@dataclass(frozen=True)
class MarkTask:
    """The sets by name."""

    sets: tuple[str, ...]


def analyse(config: OverlapConfig, *, n_workers: int, progress: ProgressBars) -> dict[str, Any]:
    """Mark every example; writes `examples.jsonl` and `overlap.json` into the output folder and returns the latter."""
    corpora = _corpora(config.training)
    sources = find_inputs(config.training.paths) if config.training.paths else []
    with Workspace(config.output.folder / "work", n_workers=n_workers, progress=progress) as workspace:
        run = ShardRun(workspace)
        rule = LengthRule(config.overlap.min_words, config.overlap.max_words, config.overlap.percentile)
        known = index_sets(run, config.overlap.sets, rule, where="overlap.sets")
        finished = []
        for place, corpus in enumerate(corpora):
            named = {f"{place}-{name}": path for name, path in run.named(corpus.shards).items()}
            searched = search(run, SHARDS, SearchTask(known.lengths, corpus.split), known, named)
            _check_documents(corpus, searched)
            finished += searched
        if sources:
            reading = InputConfig(
                paths=("-",),  # the files are the tasks' inputs; what matters is how they are read
                text_field=config.training.text_field,
                id_field=config.training.id_field,
                text_separator=config.training.text_separator,
            )
            finished += search(
                run,
                TEXTS,
                TextTask(known.lengths, reading),
                known,
                run.named(local_inputs(sources, workspace.folder / "remote")),
            )
        hits = [path for task in finished for path in task.task.outputs]
        marked = workspace.folder / MARK.name / EXAMPLES_FILE
        inputs = (known.numbers, known.grams, known.examples, *hits)
        names = tuple(one.name for one in config.overlap.sets)
        (result,) = run.tasks(MARK, [Task(MarkTask(names), inputs, (marked,))])
        found = result.facts["sets"]
        summary = {
            "format": "triaxial-overlap",
            "version": 1,
            "training_documents": sum(task.facts["documents"] for task in finished),
            "training_characters": sum(task.facts["characters"] for task in finished),
            "sets": [about | of_set for about, of_set in zip(known.sets, found, strict=True)],
        }
        _publish(config.output.folder, marked, summary)
        return summary


def mark_examples(config: MarkTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: (numbers, GRAM rows, examples, HITs of every shard) to a JSON line for each example.

    Facts: for each set, its dirty and clean examples and in how many documents it was met at most.
    """
    numbers, grams = read_array(inputs[0]), read_array(inputs[1])
    documents = np.zeros(len(numbers), np.int64)
    for path in inputs[3:]:
        add_documents(documents, path)
    counted = np.unique(grams[["example", "gram"]])  # a gram that stands twice in an example is one of its grams
    n_examples = sum(1 for _ in read_shard(inputs[2]))
    of_example = counted["example"].astype(np.int64)
    n_grams = np.bincount(of_example, minlength=n_examples)
    n_hits = np.bincount(of_example[documents[counted["gram"]] > 0], minlength=n_examples)
    most = np.zeros(n_examples, np.int64)
    np.maximum.at(most, of_example, documents[counted["gram"]])
    sets = {name: {"dirty": 0, "clean": 0} for name in config.sets}
    with open(outputs[0], "w", encoding="utf-8") as file:
        for number, example in enumerate(read_shard(inputs[2])):
            about = example.metadata
            dirty = bool(n_hits[number])
            sets[about["set"]]["dirty" if dirty else "clean"] += 1
            line = {
                "set": about["set"],
                "index": about["index"],
                "id": example.id,
                "dirty": dirty,
                "grams": int(n_grams[number]),
                "hits": int(n_hits[number]),
                "documents": int(most[number]),
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    for counts in sets.values():
        total = counts["dirty"] + counts["clean"]
        counts["clean_percent"] = round(100 * counts["clean"] / total, 2) if total else 100.0  # type: ignore[assignment]
    return TaskResult([], {"sets": list(sets.values())})


def search_texts(config: TextTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: (text file, known numbers) to its HITs. A file that cannot be read to its end is a mistake: an
    example that is clean only because a part of the corpus was not seen must not pass for clean."""
    with local_copy(inputs[0], outputs[0].parent, max_bytes=config.input.max_download_bytes) as path:
        return find_hits(_texts(path, config.input), config.lengths, inputs[1], outputs[0])


def _texts(path: Path, reading: InputConfig) -> Iterator[tuple[int, str]]:
    for row, record in enumerate(read_records(path, reading)):
        if isinstance(record, Page):
            raise ConfigError(
                f"training.paths: {path} holds HTML pages; run `triaxial prepare` on it, and name its corpus"
            )
        if not isinstance(record, Document):
            raise ConfigError(f"training.paths: {path}, record {row + 1}, cannot be read ({record.reason})")
        yield row, record.text


@dataclass(frozen=True)
class _Corpus:
    folder: Path
    split: SplitConfig
    documents: int  # of its training split
    work: Path
    shards: list[Path]  # of its last text step


def _corpora(config: TrainingConfig) -> list[_Corpus]:
    found = []
    for place, folder in enumerate(config.corpora):
        about = read_corpus(folder)
        try:
            recipe, documents = about["recipe"]["output"], about["splits"]["training"]["documents"]
            split = SplitConfig(recipe["validation_fraction"], recipe["seed"])
        except (KeyError, TypeError):
            raise ConfigError(f"{folder}/corpus.json: damaged; run `triaxial prepare` again") from None
        work = config.works[place] if config.works else folder / "work"
        steps = read_steps(work)
        if not steps.finished:
            raise ConfigError(
                f"{work}: the last run there has not come to its end, so its texts are not those of {folder}; run "
                "`triaxial prepare` on the recipe of that corpus again"
            )
        shards = steps.done[-1].shards(work)
        for path in shards:
            if not path.is_file():
                raise ConfigError(f"{path}: no such file; run `triaxial prepare` on the recipe of {folder} again")
        found.append(_Corpus(folder, split, documents, work, shards))
    return found


def _check_documents(corpus: _Corpus, searched: list[FinishedTask]) -> None:
    """The texts are those of the corpus, and not of a later run in its work folder that did not come to its end."""
    documents = sum(task.facts["documents"] for task in searched)
    if documents != corpus.documents:
        raise ConfigError(
            f"{corpus.work} holds {documents:,} training documents, but the corpus in {corpus.folder} has "
            f"{corpus.documents:,}: another recipe ran there since; run `triaxial prepare` on its own again"
        )


def _publish(folder: Path, marked: Path, summary: dict[str, Any]) -> None:
    with disk_errors(folder):
        for name in (EXAMPLES_FILE, SUMMARY_FILE):
            temporary = temporary_for(folder / name)
            with open(temporary, "xb") as file:
                if name == EXAMPLES_FILE:
                    with open(marked, "rb") as examples:
                        shutil.copyfileobj(examples, file, 1 << 20)
                else:
                    file.write(json.dumps(summary, indent=2, ensure_ascii=False).encode() + b"\n")
            os.replace(temporary, folder / name)


SHARDS = Stage("overlap_search", search_shard)
TEXTS = Stage("overlap_texts", search_texts)
MARK = Stage("overlap_mark", mark_examples)
