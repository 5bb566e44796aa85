"""Remove the text of evaluation sets from the corpus, as in appendix C of the GPT-3 paper (arXiv 2005.14165).

Every 13-gram that a document shares with an evaluation set is cut out, with 200 characters on each side of it, which
splits the document into pieces. Pieces shorter than 200 characters are dropped, and documents of more than 10 pieces
too. 13-grams in more than 10 documents of the corpus are ignored.

Steps: index the sets, search each shard, count the documents of each gram over all shards, cut. The result depends on
the whole corpus, not on how it is sharded.
"""

import itertools
import json
from collections.abc import Callable, Sequence
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
from data_prep.documents.quarantine import REASON, Quarantine, failed_rows
from data_prep.documents.shards import Document, piece_id, read_shard, write_shard
from data_prep.documents.traces import write_trace
from data_prep.execution.shard_runs import ShardRun, Shards
from data_prep.execution.tasks import Stage, TaskResult
from gpt.errors import ConfigError

REPORT = "decontamination"  # the report's key in the run's facts and in corpus.json, and its name in the work folder
CUT_ROW = np.dtype([("row", "<u4"), ("number", "<u8")])  # a document of the shard, and a gram to cut out of it
_MAX_LISTED = 100  # grams in the report


@dataclass(frozen=True)
class DecontaminateConfig:
    """The [decontaminate] section of a recipe. Without `sets` the step is skipped. The defaults are the paper's."""

    sets: tuple[EvaluationSet, ...] = ()
    """Evaluation sets whose examples are cut out of the documents."""
    ngram_words: int = 13
    """Words of a gram that a document and an example share."""
    window_characters: int = 200
    """Characters cut on each side of a shared gram. The paper's "200 character window around it" could also mean 100 on
    each side. The larger reading removes more of the example, and other programs use it."""
    min_piece_characters: int = 200
    """Shorter pieces of a cut document are dropped."""
    max_pieces: int = 10
    """A document cut into more pieces is dropped."""
    max_documents: int = 10
    """A gram that occurs in more documents is not cut."""
    whole_documents: bool = False
    """Drop a document that shares a gram, instead of cutting it. Always so for conversations."""

    def __post_init__(self) -> None:
        minimum = {
            "ngram_words": 1,
            "window_characters": 0,
            "min_piece_characters": 1,
            "max_pieces": 1,
            "max_documents": 1,
        }
        for name, limit in minimum.items():
            if getattr(self, name) < limit:
                raise ConfigError(f"decontaminate.{name} = {getattr(self, name)} is invalid: must be at least {limit}")


@dataclass(frozen=True)
class GramChoiceTask:
    """Names of the sets, and the maximum number of documents of a gram that is cut."""

    sets: tuple[str, ...]
    max_documents: int


def decontaminate(run: ShardRun, config: DecontaminateConfig, shards: Shards) -> Shards:
    """Run the four steps and return the shards without the sets' text.

    The report goes to the run's facts and to the work folder. ConfigError: as `find_set_files` and `read_examples`.
    """
    # All sets have the same N, so `synthetic` does not matter: a shorter example shares no gram of this length.
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
    """Return the report without its lists of grams, for corpus.json."""
    return {key: value for key, value in report.items() if not isinstance(value, list) or key == "sets"}


def choose_grams(config: GramChoiceTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: (numbers, GRAM rows, examples, HITs of every shard) to the CUT_ROWs of each shard.

    A gram is cut if at most `max_documents` documents of the whole corpus have it. Memory: the index, and the hits of
    one shard. Facts: the grams and documents that were hit, by set.
    """
    numbers, grams = read_array(inputs[0]), read_array(inputs[1])
    documents = np.zeros(len(numbers), np.int64)
    for path in inputs[3:]:
        add_documents(documents, path)
    active = (documents > 0) & (documents <= config.max_documents)
    of_set = [np.unique(grams["gram"][grams["set"] == index]) for index in range(len(config.sets))]
    n_hit = np.zeros(len(config.sets) + 1, np.int64)  # documents by set, then in total
    for path, output in zip(inputs[3:], outputs, strict=True):
        hits = read_array(path)
        hits = hits[active[hits["gram"]]]
        rows = np.zeros(len(hits), CUT_ROW)
        rows["row"], rows["number"] = hits["row"], numbers[hits["gram"]]
        write_array(output, rows)
        n_hit += [len(np.unique(hits["row"][_is_in(hits["gram"], some)])) for some in [*of_set, np.flatnonzero(active)]]
    ignored = documents > config.max_documents
    sets = []
    for index, name in enumerate(config.sets):
        rows_of_set = grams[grams["set"] == index]
        sets.append(
            {
                "name": name,
                "examples_hit": len(np.unique(rows_of_set["example"][active[rows_of_set["gram"]]])),
                "grams_hit": int(active[of_set[index]].sum()),
                "grams_ignored": int(ignored[of_set[index]].sum()),
                "documents_hit": int(n_hit[index]),
            }
        )
    facts = {"documents_hit": int(n_hit[-1]), "sets": sets}
    for key, which in (("grams_cut", active), ("grams_ignored", ignored)):
        order = np.flatnonzero(which)[np.argsort(-documents[which], kind="stable")][:_MAX_LISTED]
        texts = _gram_texts(order, grams, inputs[2])
        facts[key] = [
            {"documents": int(documents[gram]), "gram": texts[gram][0], "set": config.sets[texts[gram][1]]}
            for gram in order.tolist()
        ]
    return TaskResult([], facts)


def cut_documents(config: DecontaminateConfig, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: (shard, CUT_ROWs, quarantines of the search) to (shard, trace); pieces replace cut documents.

    There are two rows of counts. `decontaminate` counts documents; a cut one is kept if one of its pieces is. `pieces`
    counts pieces, a whole document as one, so its documents out are those of the output shard.
    """
    parts_of = _cutter(read_array(inputs[1]), config)
    failed = failed_rows(inputs[2:])  # not searched, so they must not stay
    n_cut = n_characters = 0
    with (
        write_shard(outputs[0]) as write,
        write_trace(outputs[1]) as trace,
        Quarantine("decontaminate", inputs, outputs) as quarantine,
    ):
        documents, pieces = Tally("decontaminate", trace), Tally("pieces", trace)
        found = quarantine.each_or_none(read_shard(inputs[0]), parts_of, documents)
        for row, (document, parts) in enumerate(found):
            if parts is None:
                continue
            if row in failed:
                documents.drop(REASON, document.n_bytes, document.id, detail="in the search")
                continue
            if parts == [document]:
                documents.keep(document.n_bytes, document.n_bytes)
                pieces.keep(document.n_bytes, document.n_bytes)
                write(document)
                continue
            if config.whole_documents:
                documents.drop("shares_a_gram", document.n_bytes, document.id)
                continue
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


def _cutter(hits: npt.NDArray[Any], config: DecontaminateConfig) -> Callable[[Document], list[Document]]:
    """Return a function to call with every document of a shard, in order; it returns the pieces, or the document."""
    index = GramIndex.of(np.unique(hits["number"]))
    with_hits = set(hits["row"].tolist())
    rows = itertools.count()

    def parts_of(document: Document) -> list[Document]:
        row = next(rows)  # first, so that a failed text does not shift the rows of the others
        document.text.encode()  # fails on a text that cannot be written
        if row not in with_hits:
            return [document]
        return cut(document, find_known(document.text, index, (config.ngram_words,)), config.window_characters)

    return parts_of


def cut(document: Document, found: Spans, window: int) -> list[Document]:
    """Cut the shared grams and their windows out of a document; return the pieces of at least one character.

    Pieces are numbered in order, including those that will be too short. `piece_start` in their metadata is the
    piece's first character in the document.
    """
    n = len(document.text)
    stops = np.append(np.maximum(found.starts - window, 0), n)  # ends of the pieces before each window, and of the last
    starts = np.append(0, np.minimum(found.ends + window, n))
    starts = np.maximum.accumulate(starts)
    left = np.flatnonzero(stops > starts)
    return [
        Document(piece_id(document.id, number), document.text[start:stop], {**document.metadata, "piece_start": start})
        for number, (start, stop) in enumerate(zip(starts[left].tolist(), stops[left].tolist(), strict=True))
    ]


def _is_in(values: npt.NDArray[Any], known: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Mark the values that are among the sorted known ones, (n,)."""
    if not len(known):
        return np.zeros(len(values), dtype=bool)
    same: npt.NDArray[np.bool_] = known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values
    return same


def _gram_texts(wanted: npt.NDArray[Any], grams: npt.NDArray[Any], examples: Path) -> dict[int, tuple[str, int]]:
    """Return the words of each wanted gram, and the index of the first set that has it."""
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
    merged = [about | of_set for about, of_set in zip(sets, hit["sets"], strict=True)]
    numbers = {key: sum(facts[key] for facts in cuts) for key in ("documents_cut", "characters_cut")}
    return {**hit, **numbers, "sets": merged}


CHOICE = Stage("evaluation_choice", choose_grams)
CUT = Stage("decontaminate", cut_documents)
