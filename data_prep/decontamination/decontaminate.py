"""Takes text of evaluation sets out of the corpus, as appendix C of the GPT-3 paper says; never looks at an answer.

arXiv 2005.14165: every 13-gram that a document shares with an evaluation set goes, with 200 characters on each side of
it, and the document falls into pieces. Pieces shorter than 200 characters are dropped, documents of more than 10 pieces
wholly, and 13-grams in more than 10 documents of the corpus are left alone. Steps: index the sets, search each shard,
count over all shards in how many documents each gram is, cut. What is cut depends on the whole corpus, never on shards.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.decontamination.evaluation_sets import EvaluationSet
from data_prep.decontamination.known_grams import SEARCH, LengthRule, SearchTask, add_documents, index_sets, search
from data_prep.decontamination.ngrams import GramIndex, Spans, find_known, plain
from data_prep.documents.arrays import read_array, write_array
from data_prep.documents.counts import Tally
from data_prep.documents.shards import Document, piece_id, read_shard, write_shard
from data_prep.documents.traces import write_trace
from data_prep.execution.shard_runs import ShardRun, Shards
from data_prep.execution.tasks import Stage, TaskResult
from gpt.errors import ConfigError

REPORT = "decontamination"  # a key of the run's facts and of corpus.json, and the file in the work folder
CUT_ROW = np.dtype([("row", "<u4"), ("number", "<u8")])  # a document of the shard, and a gram that it must lose
_LISTED = 100  # grams in the report


@dataclass(frozen=True)
class DecontaminateConfig:
    """Section [decontaminate]: nothing is done without `sets`. The numbers are those of the paper.

    `window_characters` go on each side of a shared gram of `ngram_words`. The paper's "200 character window around it"
    could also mean 100 on each side; the larger reading takes more of the example, and is what other programs do.
    """

    sets: tuple[EvaluationSet, ...] = ()
    ngram_words: int = 13
    window_characters: int = 200
    min_piece_characters: int = 200
    max_pieces: int = 10
    max_documents: int = 10

    def __post_init__(self) -> None:
        least = {
            "ngram_words": 1,
            "window_characters": 0,
            "min_piece_characters": 1,
            "max_pieces": 1,
            "max_documents": 1,
        }
        for name, limit in least.items():
            if getattr(self, name) < limit:
                raise ConfigError(f"decontaminate.{name} = {getattr(self, name)} must be at least {limit}")


@dataclass(frozen=True)
class GramChoiceTask:
    """What the choice of grams depends on, beside the index and the hits."""

    sets: tuple[str, ...]
    max_documents: int


def decontaminate(run: ShardRun, config: DecontaminateConfig, shards: Shards) -> Shards:
    """Run the four steps: the shards without the sets' text. The report goes to the run's facts and the work folder."""
    # The least N of the overlap analysis has no part here: a shorter example shares no gram of this length.
    sets = tuple(replace(one, synthetic=False) for one in config.sets)
    known = index_sets(run, sets, LengthRule(config.ngram_words, config.ngram_words), where="decontaminate.sets")
    search(run, SEARCH, SearchTask(known.lengths), known, shards)
    hits = run.arrays(SEARCH, list(shards))
    choice = GramChoiceTask(tuple(one.name for one in sets), config.max_documents)
    chosen = run.reduce(CHOICE, choice, [known.numbers, known.grams, known.examples, *hits.values()], list(shards))
    shards = run.map(CUT, replace(config, sets=()), shards, extra_inputs=chosen)
    report = _report(run, known.sets)
    run.facts[REPORT] = [report]
    run.workspace.write_note(f"{REPORT}.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return shards


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """The report without its lists of grams, for corpus.json."""
    return {key: value for key, value in report.items() if not isinstance(value, list) or key == "sets"}


def choose_grams(config: GramChoiceTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: (numbers, GRAM rows, examples, HITs of every shard) to the CUT_ROWs of each shard.

    A gram counts when at most `max_documents` documents of the whole corpus hold it. Memory: the index, and the hits of
    one shard. Facts: the report on what was hit.
    """
    numbers, grams = read_array(inputs[0]), read_array(inputs[1])
    documents = np.zeros(len(numbers), np.int64)
    for path in inputs[3:]:
        add_documents(documents, path)
    active = (documents > 0) & (documents <= config.max_documents)
    of_set = [np.unique(grams["gram"][grams["set"] == place]) for place in range(len(config.sets))]
    touched = np.zeros(len(config.sets) + 1, np.int64)  # documents, by set and in all
    for path, output in zip(inputs[3:], outputs, strict=True):
        hits = read_array(path)
        hits = hits[active[hits["gram"]]]
        rows = np.zeros(len(hits), CUT_ROW)
        rows["row"], rows["number"] = hits["row"], numbers[hits["gram"]]
        write_array(output, rows)
        touched += [len(np.unique(hits["row"][_among(hits["gram"], own)])) for own in [*of_set, np.flatnonzero(active)]]
    sets = []
    for place, name in enumerate(config.sets):
        mine, own = grams[grams["set"] == place], of_set[place]
        about = {"name": name, "examples_hit": len(np.unique(mine["example"][active[mine["gram"]]]))}
        about |= {
            "grams_hit": int(active[own].sum()),
            "grams_ignored": int((documents[own] > config.max_documents).sum()),
        }
        sets.append(about | {"documents_hit": int(touched[place])})
    facts = {"documents_hit": int(touched[-1]), "sets": sets}
    for key, which in (("grams_cut", active), ("grams_ignored", documents > config.max_documents)):
        order = np.flatnonzero(which)[np.argsort(-documents[which], kind="stable")][:_LISTED]
        texts = _gram_texts(order, grams, inputs[2])
        facts[key] = [
            {"documents": int(documents[gram]), "gram": texts[gram][0], "set": config.sets[texts[gram][1]]}
            for gram in order.tolist()
        ]
    return TaskResult([], facts)


def cut_documents(config: DecontaminateConfig, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: (shard, CUT_ROWs) to (shard, trace), where cut documents are replaced by their pieces.

    Two rows of counts: `decontaminate` counts documents, a cut one as kept when a piece of it is; `pieces` counts
    what they consist of, a document that was not cut as one piece, so its documents out are those of the shard.
    """
    hits = read_array(inputs[1])
    index = GramIndex.of(np.unique(hits["number"]))
    with_hits = set(hits["row"].tolist())
    n_cut = n_characters = 0
    with write_shard(outputs[0]) as write, write_trace(outputs[1]) as trace:
        documents, pieces = Tally("decontaminate", trace), Tally("pieces", trace)
        for row, document in enumerate(read_shard(inputs[0])):
            if row not in with_hits:
                documents.keep(document.n_bytes, document.n_bytes)
                pieces.keep(document.n_bytes, document.n_bytes)
                write(document)
                continue
            parts = cut(document, find_known(document.text, index, (config.ngram_words,)), config.window_characters)
            long = [part for part in parts if len(part.text) >= config.min_piece_characters]
            if len(parts) > config.max_pieces or not long:
                reason = "too_many_pieces" if len(parts) > config.max_pieces else "no_long_piece"
                documents.drop(reason, document.n_bytes, document.id, detail=f"{len(parts)} pieces")
                continue
            documents.keep(document.n_bytes, sum(part.n_bytes for part in parts))
            n_cut += 1
            n_characters += len(document.text) - sum(len(part.text) for part in parts)
            for part in parts:
                if len(part.text) < config.min_piece_characters:
                    pieces.drop("short", part.n_bytes, part.id, detail=f"{len(part.text)} characters")
                else:
                    pieces.keep(part.n_bytes, part.n_bytes)
                    write(part)
    return TaskResult([documents.counts(), pieces.counts()], {"documents_cut": n_cut, "characters_cut": n_characters})


def cut(document: Document, found: Spans, window: int) -> list[Document]:
    """What is left of a document between the shared grams and their windows: every piece of at least a character.

    Pieces are numbered in order, also those that will be too short; `piece_start` in their metadata is the character
    of the document at which they start.
    """
    n = len(document.text)
    stops = np.append(np.maximum(found.starts - window, 0), n)  # where the text before each window ends, and the last
    starts = np.append(0, np.minimum(found.ends + window, n))
    starts = np.maximum.accumulate(starts)
    left = np.flatnonzero(stops > starts)
    return [
        Document(piece_id(document.id, number), document.text[start:stop], {**document.metadata, "piece_start": start})
        for number, (start, stop) in enumerate(zip(starts[left].tolist(), stops[left].tolist(), strict=True))
    ]


def _among(values: npt.NDArray[Any], known: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which values are among the sorted known ones."""
    if not len(known):
        return np.zeros(len(values), dtype=bool)
    same: npt.NDArray[np.bool_] = known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values
    return same


def _gram_texts(wanted: npt.NDArray[Any], grams: npt.NDArray[Any], examples: Path) -> dict[int, tuple[str, int]]:
    """Each wanted gram in words, and the first set that holds it."""
    rows = grams[np.isin(grams["gram"], wanted)]
    rows = rows[np.unique(rows["gram"], return_index=True)[1]]
    by_example: dict[int, list[Any]] = {}
    for row in rows:
        by_example.setdefault(int(row["example"]), []).append(row)
    texts = {}
    for number, example in enumerate(read_shard(examples)) if by_example else ():
        for row in by_example.get(number, ()):
            texts[int(row["gram"])] = (plain(example.text[row["start"] : row["end"]]), int(row["set"]))
    return texts


def _report(run: ShardRun, sets: Sequence[dict[str, Any]]) -> dict[str, Any]:
    hit = run.facts[CHOICE.name][-1]
    cuts = run.facts[CUT.name]
    together = [about | of_set for about, of_set in zip(sets, hit["sets"], strict=True)]
    numbers = {key: sum(facts[key] for facts in cuts) for key in ("documents_cut", "characters_cut")}
    return {**hit, **numbers, "sets": together}


CHOICE = Stage("evaluation_choice", choose_grams)
CUT = Stage("decontaminate", cut_documents)
