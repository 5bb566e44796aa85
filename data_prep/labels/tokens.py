"""Write the token ids of labelled texts in the shuffled order of the corpus, with the stream `labels`.

The files have the form of `data_prep.corpus.tokenize`, so `data_prep.corpus.shards` makes the token files of both.
"""

import tempfile
from array import array
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.corpus.split import SplitConfig
from data_prep.corpus.tokenize import ROW, batches, copy_in_order, split_totals
from data_prep.documents.arrays import write_array
from data_prep.documents.counts import Tally
from data_prep.documents.quarantine import Quarantine
from data_prep.documents.shards import Document, read_shard
from data_prep.execution.tasks import Stage, TaskResult
from data_prep.labels.read import states_of
from gpt.errors import import_extra
from gpt.token_files.files import token_dtype
from gpt.token_files.label_states import NEGATIVE, POSITIVE, States, encode_states, label_tokens, label_values
from gpt.tokenizer.tokenizers import Tokenizer, load_tokenizer

STREAM = "labels"
_SPLITS = ("training", "validation")


@dataclass(frozen=True)
class LabelTokensTask:
    """The division into splits, the number of categories and the longest document in tokens."""

    split: SplitConfig
    n_categories: int
    max_tokens: int | None


class _Columns:
    """The ids and labels of documents, unsorted in temporary files, and the columns of their ROWs."""

    def __init__(self, files: ExitStack, folder: Path, task: LabelTokensTask, vocab_size: int) -> None:
        self.task = task
        self.types = {"ids": token_dtype(vocab_size), STREAM: token_dtype(label_values(task.n_categories))}
        self.unsorted = {}
        for name in self.types:
            file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  `files` closes it
            self.unsorted[name] = files.enter_context(file)
        self.columns = {"validation": array("b"), "order": array("Q"), "text": array("Q"), "length": array("i")}
        self.counts = {
            split: {name: np.zeros(task.n_categories, np.int64) for name in ("positive", "negative")}
            for split in _SPLITS
        }
        self.hash = import_extra("xxhash", extra="data").xxh3_64_intdigest

    def add(self, document: Document, ids: npt.NDArray[Any], states: States) -> None:
        values = np.zeros(len(ids), dtype=np.int64)
        codes = encode_states(states)
        values[len(ids) - len(codes) :] = codes[::-1]  # the last token's first
        self.unsorted["ids"].write(ids.astype(self.types["ids"]).data)
        self.unsorted[STREAM].write(values.astype(self.types[STREAM]).data)
        validation = self.task.split.is_validation(document.id)
        self.columns["validation"].append(validation)
        self.columns["order"].append(self.task.split.order(document.id))
        self.columns["text"].append(self.hash(document.text.encode()))
        self.columns["length"].append(len(ids))
        counts = self.counts[_SPLITS[validation]]
        counts["positive"] += states == POSITIVE
        counts["negative"] += states == NEGATIVE

    def write(self, outputs: tuple[Path, ...]) -> npt.NDArray[Any]:
        """Write (ids, rows, labels) in the order of the corpus; return the rows."""
        rows = np.zeros(len(self.columns["length"]), dtype=ROW)
        for name, column in self.columns.items():
            rows[name] = np.asarray(column)
        rows["start"] = np.cumsum(rows["length"], dtype=np.int64) - rows["length"]
        rows = rows[np.lexsort((rows["text"], rows["order"], rows["validation"]))]
        for name, output in (("ids", outputs[0]), (STREAM, outputs[2])):
            with open(output, "wb") as sorted_file:
                copy_in_order(self.unsorted[name], sorted_file, rows, self.types[name])
        rows["start"] = np.cumsum(rows["length"], dtype=np.int64) - rows["length"]
        write_array(outputs[1], rows)
        return rows


def write_tokens(config: LabelTokensTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: (shard, tokenizer's files) to (ids, one ROW per document, labels), sorted like ROW.

    A document ends with the end-of-document token, also one that is cut. A text with fewer tokens than the labels need
    (of more than 20 categories) is dropped. Facts: of each split tokens, documents, and positive and negative labels
    by category; `cut` documents; the `longest` one before cutting.
    """
    tokenizer, tally = load_tokenizer(inputs[1]), Tally(TOKENS.name)
    facts = {"cut": 0, "longest": 0}
    with ExitStack() as files, Quarantine(TOKENS.name, inputs, outputs) as quarantine:
        columns = _Columns(files, outputs[0].parent, config, tokenizer.vocab_size)

        def encode(batch: list[Document]) -> list[npt.NDArray[Any]]:
            return list(tokenizer.encode_arrays([document.text for document in batch]))

        for documents, found in quarantine.each_batch(batches(read_shard(inputs[0])), encode, tally):
            for document, ids in zip(documents, found, strict=True):
                facts["longest"] = max(facts["longest"], len(ids) + 1)
                facts["cut"] += config.max_tokens is not None and len(ids) + 1 > config.max_tokens
                ended = _ended(ids, tokenizer, config.max_tokens)
                if len(ended) < label_tokens(config.n_categories):
                    tally.drop("fewer_tokens_than_labels", document.n_bytes, document.id)
                    continue
                columns.add(document, ended, states_of(document))
                tally.keep(document.n_bytes, document.n_bytes)
        rows = columns.write(outputs)
    splits = {
        split: {
            **split_totals(rows, split == "validation"),
            **{name: values.tolist() for name, values in columns.counts[split].items()},
        }
        for split in _SPLITS
    }
    return TaskResult([tally.counts()], {**splits, **facts})


def _ended(ids: npt.NDArray[Any], tokenizer: Tokenizer, max_tokens: int | None) -> npt.NDArray[Any]:
    """The ids, cut to leave room for the end-of-document token, and that token."""
    kept = ids if max_tokens is None else ids[: max_tokens - 1]
    return np.append(kept.astype(np.int64), tokenizer.end_of_document_id)


TOKENS = Stage("tokenize_labels", write_tokens)
