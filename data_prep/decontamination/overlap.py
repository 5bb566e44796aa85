"""Mark the examples of evaluation sets that occur in a corpus, as in appendix C of the GPT-3 paper (arXiv 2005.14165).

An example is dirty if any of its N-grams occurs in any training document, else clean. For each set, N is the 5th
percentile of its examples' lengths in words, at most 13 and, if the set is not synthetic, at least 8. The corpus itself
is not changed.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
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
from data_prep.documents.quarantine import NumberedDocument, QuarantineConfig
from data_prep.documents.records import Page
from data_prep.documents.shards import Document, read_shard
from data_prep.execution.files import disk_errors
from data_prep.execution.progress import ProgressBars
from data_prep.execution.shard_runs import ShardRun, read_steps
from data_prep.execution.tasks import FinishedTask, Stage, Task, TaskResult
from data_prep.execution.workspace import Workspace
from data_prep.inputs.config import InputConfig, form_of
from data_prep.inputs.find import find_inputs, local_inputs
from data_prep.readers.readers import read_records
from data_prep.readers.remote_files import RemoteFile, local_copy
from gpt.errors import ConfigError
from gpt.files.atomic import open_replacement, replace_file

EXAMPLES_FILE, SUMMARY_FILE = "examples.jsonl", "overlap.json"


@dataclass(frozen=True)
class TrainingConfig:
    """Section [training]: the model's training data.

    `corpora`: corpus folders of `triaxial prepare`; their validation documents do not count. `works`: their work
    folders in the same order, needed if `output.work` of a recipe is not `FOLDER/work`. `paths`: text files, patterns.
    """

    corpora: tuple[Path, ...] = ()
    works: tuple[Path, ...] = ()
    paths: tuple[str, ...] = ()
    text_field: str = "text"
    id_field: str = "id"
    text_separator: str = ""

    def __post_init__(self) -> None:
        if not self.corpora and not self.paths:
            raise ConfigError(
                "training.corpora and training.paths are missing. Give folders of `triaxial prepare`, or text files"
            )
        if self.works and len(self.works) != len(self.corpora):
            raise ConfigError(
                f"training.works is invalid: has {len(self.works)} folders for {len(self.corpora)} corpora. "
                "Give one for each corpus, or none"
            )


@dataclass(frozen=True)
class AnalysisConfig:
    """Section [overlap]: the sets, and the rule for N.

    N is the `percentile` of the examples' lengths, at least `min_words` (except for synthetic sets) and at most
    `max_words`.
    """

    sets: tuple[EvaluationSet, ...] = ()
    min_words: int = 8
    max_words: int = 13
    percentile: float = 5.0

    def __post_init__(self) -> None:
        if not self.sets:
            raise ConfigError("overlap.sets is missing. Name at least one evaluation set in [[overlap.sets]]")
        if not 1 <= self.min_words <= self.max_words:
            raise ConfigError(
                f"overlap.min_words = {self.min_words} is invalid: must be between 1 and overlap.max_words = "
                f"{self.max_words}"
            )
        if not 0 <= self.percentile <= 100:
            raise ConfigError(f"overlap.percentile = {self.percentile} is invalid: must be between 0 and 100")


@dataclass(frozen=True)
class OverlapOutput:
    """Section [output]: the folder of the results. Its subfolder "work" makes a second run quick and may be deleted."""

    folder: Path


@dataclass(frozen=True)
class OverlapConfig:
    """A recipe of `triaxial prepare overlap`."""

    training: TrainingConfig
    output: OverlapOutput
    overlap: AnalysisConfig = field(default_factory=AnalysisConfig)


@dataclass(frozen=True)
class TextTask:
    """The lengths of the known grams, and how to read the text files."""

    lengths: tuple[int, ...]
    input: InputConfig


@dataclass(frozen=True)
class MarkTask:
    """The names of the sets."""

    sets: tuple[str, ...]


def analyse(config: OverlapConfig, *, n_workers: int, progress: ProgressBars) -> dict[str, Any]:
    """Mark every example; write `examples.jsonl` and `overlap.json` to the output folder and return the latter.

    ConfigError: a set, a corpus or a text file cannot be read, or the search fails on a document.
    """
    corpora = _corpora(config.training)
    sources = find_inputs(config.training.paths) if config.training.paths else []
    strict = QuarantineConfig(max_share=0, min_documents=0)  # or an example could count as clean by mistake
    folder = config.output.folder / "work"
    with Workspace(folder, n_workers=n_workers, progress=progress, quarantine=strict) as workspace:
        return workspace.run_whole(lambda: _run_stages(workspace, config, corpora, sources))


def _run_stages(
    workspace: Workspace, config: OverlapConfig, corpora: Sequence["_Corpus"], sources: Sequence[Path | RemoteFile]
) -> dict[str, Any]:
    run = ShardRun(workspace)
    rule = LengthRule(config.overlap.min_words, config.overlap.max_words, config.overlap.percentile)
    known = index_sets(run, config.overlap.sets, rule, where="overlap.sets")
    finished = []
    for index, corpus in enumerate(corpora):
        named = {f"{index}-{name}": path for name, path in run.named(corpus.shards).items()}
        searched = search(run, SHARDS, SearchTask(known.lengths, corpus.split), known, named)
        _check_documents(corpus, searched)
        finished += searched
    if sources:
        named = run.named(local_inputs(sources, workspace.folder / "remote"), form_of)
        finished += search(run, TEXTS, TextTask(known.lengths, _reading(config.training)), known, named)
    hits = [path for task in finished for path in task.task.outputs]
    marked = workspace.folder / MARK.name / EXAMPLES_FILE
    inputs = (known.numbers, known.grams, known.examples, *hits)
    names = tuple(one.name for one in config.overlap.sets)
    (result,) = run.tasks(MARK, [Task(MarkTask(names), inputs, (marked,))])
    summary = {
        "format": "triaxial-overlap",
        "version": 1,
        "training_documents": sum(task.facts["documents"] for task in finished),
        "training_characters": sum(task.facts["characters"] for task in finished),
        "sets": [about | of_set for about, of_set in zip(known.sets, result.facts["sets"], strict=True)],
    }
    _publish(config.output.folder, marked, summary)
    return summary


def _reading(config: TrainingConfig) -> InputConfig:
    return InputConfig(
        paths=("-",),  # the files are the inputs of the tasks, so their names must not count
        text_field=config.text_field,
        id_field=config.id_field,
        text_separator=config.text_separator,
    )


def mark_examples(config: MarkTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: (numbers, GRAM rows, examples, HITs of every shard) to a JSON line for each example.

    Facts: for each set, its numbers of dirty and clean examples, and the clean percentage.
    """
    numbers, grams = read_array(inputs[0]), read_array(inputs[1])
    documents = np.zeros(len(numbers), np.int64)
    for path in inputs[3:]:
        add_documents(documents, path)
    counted = np.unique(grams[["example", "gram"]])  # a gram that occurs twice in an example counts once
    n_examples = sum(1 for _ in read_shard(inputs[2]))
    of_example = counted["example"].astype(np.int64)
    n_grams = np.bincount(of_example, minlength=n_examples)
    n_hits = np.bincount(of_example[documents[counted["gram"]] > 0], minlength=n_examples)
    max_documents = np.zeros(n_examples, np.int64)
    np.maximum.at(max_documents, of_example, documents[counted["gram"]])
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
                "documents": int(max_documents[number]),
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    for counts in sets.values():
        total = counts["dirty"] + counts["clean"]
        counts["clean_percent"] = round(100 * counts["clean"] / total, 2) if total else 100.0  # type: ignore[assignment]
    return TaskResult([], {"sets": list(sets.values())})


def search_texts(config: TextTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: (text file, known numbers) to its HITs.

    ConfigError: the file cannot be read to its end. An example must not count as clean because part of the corpus was
    not read.
    """
    with local_copy(inputs[0], outputs[0].parent, max_bytes=config.input.max_download_bytes) as path:
        return find_hits(_texts(path, config.input), config.lengths, inputs, outputs)


def _texts(path: Path, reading: InputConfig) -> Iterator[NumberedDocument]:
    for row, record in enumerate(read_records(path, reading)):
        if isinstance(record, Page):
            raise ConfigError(
                f"training.paths: {path} has HTML pages. Run `triaxial prepare` on it, and give its corpus instead"
            )
        if not isinstance(record, Document):
            raise ConfigError(f"training.paths: {path}, record {row + 1}, cannot be read ({record.reason})")
        yield NumberedDocument(record.id, record.text, record.metadata, row)


@dataclass(frozen=True)
class _Corpus:
    folder: Path
    split: SplitConfig
    documents: int  # of its training split
    work: Path
    shards: list[Path]  # of its last text step


def _corpora(config: TrainingConfig) -> list[_Corpus]:
    found = []
    for index, folder in enumerate(config.corpora):
        about = read_corpus(folder)
        try:
            recipe, documents = about["recipe"]["output"], about["splits"]["training"]["documents"]
            split = SplitConfig(recipe["validation_fraction"], recipe["seed"])
        except (KeyError, TypeError):
            raise ConfigError(f"{folder}/corpus.json: damaged. Run `triaxial prepare` again") from None
        work = config.works[index] if config.works else folder / "work"
        steps = read_steps(work)
        if not steps.finished:
            raise ConfigError(
                f"{work}: the last run there did not finish, so its texts are not those of {folder}. Run "
                "`triaxial prepare` on the recipe of that corpus again"
            )
        shards = steps.done[-1].shards(work)
        for path in shards:
            if not path.is_file():
                raise ConfigError(f"{path}: no such file. Run `triaxial prepare` on the recipe of {folder} again")
        found.append(_Corpus(folder, split, documents, work, shards))
    return found


def _check_documents(corpus: _Corpus, searched: list[FinishedTask]) -> None:
    """Check that the work folder has the texts of the corpus, not of another run since."""
    documents = sum(task.facts["documents"] for task in searched)
    if documents != corpus.documents:
        raise ConfigError(
            f"{corpus.work} has {documents:,} training documents, but the corpus in {corpus.folder} has "
            f"{corpus.documents:,}: another recipe ran there since. Run `triaxial prepare` on the corpus's recipe again"
        )


def _publish(folder: Path, marked: Path, summary: dict[str, Any]) -> None:
    with disk_errors(folder):
        with open(marked, "rb") as examples, open_replacement(folder / EXAMPLES_FILE) as file:
            shutil.copyfileobj(examples, file, 1 << 20)
        replace_file(folder / SUMMARY_FILE, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


SHARDS = Stage("overlap_search", search_shard)
TEXTS = Stage("overlap_texts", search_texts)
MARK = Stage("overlap_mark", mark_examples)
