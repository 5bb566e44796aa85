"""Write the token ids of rendered conversations in the shuffled order of the corpus, with their streams.

The files have the form of `data_prep.corpus.tokenize`, so `data_prep.corpus.shards` makes the token files of both.
"""

import json
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.conversations.conversation import Conversation, Kind, conversation_of
from data_prep.conversations.ranking import MAX_LEVELS
from data_prep.conversations.render import Tokens, tokens_of
from data_prep.corpus.split import SplitConfig
from data_prep.corpus.tokenize import ROW, copy_in_order, split_totals
from data_prep.documents.arrays import write_array
from data_prep.documents.counts import Tally
from data_prep.documents.shards import parent_id, read_shard
from data_prep.execution.tasks import Stage, TaskResult
from gpt.errors import import_extra
from gpt.token_files.files import token_dtype

# Streams of each kind of corpus, with the number of values that each may have: the vocabulary of its token files.
STREAMS: dict[Kind, dict[str, int]] = {
    "demonstrations": {"learned": 2},
    "rankings": {"learned": 2, "marks": 1 + MAX_LEVELS},
    "prompts": {},
}


@dataclass(frozen=True)
class TokensTask:
    """The division into splits, the kind of the corpus and the size of the vocabulary."""

    split: SplitConfig
    kind: Kind
    vocab_size: int


@dataclass(frozen=True)
class RankingsTask:
    """The split whose rankings are listed."""

    validation: bool


def write_tokens(config: TokensTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: a rendered shard to (ids, one ROW per document, lines of rankings, each stream), sorted like ROW.

    Facts: tokens and documents of each split. Memory: 29 bytes per document of the shard, the lines of its rankings,
    and the tokens being copied.
    """
    xxhash = import_extra("xxhash", extra="data")
    names = ("ids", *STREAMS[config.kind])
    types = dict(zip(names, map(token_dtype, (config.vocab_size, *STREAMS[config.kind].values())), strict=True))
    tally, lines = Tally("tokenize"), list[str]()
    columns = {"validation": array("b"), "order": array("Q"), "text": array("Q"), "length": array("i")}
    with ExitStack() as files:
        unsorted = {name: files.enter_context(tempfile.TemporaryFile(dir=outputs[0].parent)) for name in names}
        for document in read_shard(inputs[0]):
            tokens = tokens_of(document)
            for name, values in _streams(tokens, names):
                unsorted[name].write(values.astype(types[name]).data)
            text = document.text.encode()
            columns["validation"].append(config.split.is_validation(document.id))
            columns["order"].append(config.split.order(document.id))
            columns["text"].append(xxhash.xxh3_64_intdigest(text))
            columns["length"].append(len(tokens.ids))
            lines.append(_line(document.id, conversation_of(document)) if config.kind == "rankings" else "")
            tally.keep(len(text), len(text))
        rows = np.zeros(len(lines), dtype=ROW)
        for name, column in columns.items():
            rows[name] = np.asarray(column)
        rows["start"] = np.cumsum(rows["length"], dtype=np.int64) - rows["length"]
        order = np.lexsort((rows["text"], rows["order"], rows["validation"]))
        rows = rows[order]
        for name, output in zip(names, (outputs[0], *outputs[3:]), strict=True):
            with open(output, "wb") as sorted_file:
                copy_in_order(unsorted[name], sorted_file, rows, types[name])
    rows["start"] = np.cumsum(rows["length"], dtype=np.int64) - rows["length"]
    write_array(outputs[1], rows)
    outputs[2].write_text("".join(lines[i] for i in order), encoding="utf-8")
    return TaskResult(
        [tally.counts()], {split: split_totals(rows, split == "validation") for split in ("training", "validation")}
    )


def _streams(tokens: Tokens, names: tuple[str, ...]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Yield the ids and the wanted streams, (n,) each."""
    n = len(tokens.ids)
    yield "ids", np.array(tokens.ids, dtype=np.int64)
    if "learned" in names:
        learned = np.zeros(n, dtype=np.int64)
        for start, end in tokens.learned:
            learned[start:end] = 1
        yield "learned", learned
    if "marks" in names:
        marks = np.zeros(n, dtype=np.int64)
        for position, mark in tokens.marks:
            marks[position] = mark
        yield "marks", marks


def _line(document_id: str, conversation: Conversation) -> str:
    """The line of a ranking in the side file: what evaluation needs besides the tokens."""
    answers = conversation.answers
    values = {
        "prompt_id": parent_id(document_id),
        "id": document_id,
        "source_id": conversation.source_id,
        "labeller": conversation.labeller,
        "levels": [answer.level for answer in answers],
        "scores": [answer.score for answer in answers],
        "models": [answer.model for answer in answers],
    }
    return json.dumps(values, ensure_ascii=False) + "\n"


def list_rankings(config: RankingsTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: (ROWs and lines of every shard in turn) to the lines of a split, in the order of its documents.

    Line i describes document i of the split's token files. Memory: the lines of the split.
    """
    tables, lines = [], list[str]()
    for path, texts in zip(inputs[0::2], inputs[1::2], strict=True):
        rows = np.load(path, allow_pickle=False)
        wanted = rows["validation"] == config.validation
        tables.append(rows[wanted])
        found = texts.read_text(encoding="utf-8").split("\n")[:-1]
        lines += [line for line, is_wanted in zip(found, wanted, strict=True) if is_wanted]
    table = np.concatenate([np.empty(0, dtype=ROW), *tables])
    order = np.lexsort((table["text"], table["order"]))
    outputs[0].write_text("".join(f"{lines[i]}\n" for i in order), encoding="utf-8")
    return TaskResult(facts={"documents": len(lines)})


TOKENS = Stage("tokenize_conversations", write_tokens)
RANKINGS = Stage("list_rankings", list_rankings)
