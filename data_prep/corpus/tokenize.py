"""Turn shards into token ids, in the shuffled order of the corpus.

A shard's `.tokens` file has its training documents and then its validation documents, each split in the order in which
the corpus will have them. Every file of the corpus is a range of that order, so its part of a shard is contiguous.
"""

import functools
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from data_prep.corpus.split import SplitConfig
from data_prep.documents.arrays import write_array
from data_prep.documents.counts import Tally
from data_prep.documents.quarantine import Quarantine
from data_prep.documents.shards import Document, read_shard
from data_prep.execution.tasks import Stage, TaskResult
from gpt.errors import ConfigError, import_extra
from gpt.token_files.files import token_dtype
from gpt.tokenizer.tokenizers import Tokenizer, load_tokenizer

# A document: its split, its position in the shuffled order (equal ids: by text), and its tokens' start and number.
ROW = np.dtype([("validation", "?"), ("order", "<u8"), ("text", "<u8"), ("start", "<i8"), ("length", "<i4")])
_BATCH_CHARACTERS = 1 << 20
_COPIED_TOKENS = 1 << 24  # to copy at a time when a shard is sorted
_BLOCK_DOCUMENTS = 1 << 16  # to copy at a time: each costs some Python objects


@dataclass(frozen=True)
class TokenizerConfig:
    """The [tokenizer] section of a recipe. Without `path`, a byte-pair vocabulary is trained."""

    path: Path | None = None
    """An existing tokenizer. `tokenizer_files` of gpt.tokenizer lists the formats."""
    vocab_size: int | None = None
    """Pieces of the vocabulary that is trained."""
    train_bytes: int = 100_000_000
    """Bytes of training documents to train on, a random sample if there are more."""
    character_coverage: float = 0.9995
    """Share of characters that get a piece of their own."""

    def __post_init__(self) -> None:
        if self.path is None and self.vocab_size is None:
            raise ConfigError(
                "[tokenizer] is incomplete. Set vocab_size to train a tokenizer, or path to use an existing one"
            )
        if self.vocab_size is not None and self.vocab_size < 300:
            raise ConfigError(
                f"tokenizer.vocab_size = {self.vocab_size} is invalid: must be at least 300, for 256 bytes, 2 marks "
                "and some pieces"
            )
        if not 0.98 <= self.character_coverage <= 1:  # sentencepiece's own bounds
            raise ConfigError(
                f"tokenizer.character_coverage = {self.character_coverage} is invalid: must be between 0.98 "
                "and 1. The default is 0.9995"
            )
        if self.train_bytes < 1:
            raise ConfigError(
                f"tokenizer.train_bytes = {self.train_bytes} is invalid: must be at least 1. The default is 100000000"
            )


def tokenize_shard(config: SplitConfig, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: (shard, tokenizer's files) to (token ids of all documents, one ROW for each), sorted like ROW.

    Facts: tokens and documents of each split. Memory: 29 bytes per document of the shard, and the tokens being copied.
    """
    xxhash = import_extra("xxhash", extra="data")
    stats = (path.stat() for path in inputs[1:])
    tokenizer = _load_once(inputs[1], tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats))
    dtype = token_dtype(tokenizer.vocab_size)
    tally = Tally("tokenize")

    def encode(batch: list[Document]) -> list[tuple[bytes, npt.NDArray[Any]]]:
        texts = [document.text for document in batch]
        return list(zip([text.encode() for text in texts], tokenizer.encode_arrays(texts), strict=True))

    validation, order, texts, lengths = array("b"), array("Q"), array("Q"), array("i")
    with (
        tempfile.TemporaryFile(dir=outputs[0].parent) as unsorted,
        Quarantine("tokenize", inputs, outputs) as quarantine,
    ):
        found = quarantine.each_batch(batches(read_shard(inputs[0])), encode, tally)
        for documents, values in found:
            ids = [document_ids for _, document_ids in values]
            unsorted.write(_joined(ids, tokenizer, dtype).data)
            for document, (text, _) in zip(documents, values, strict=True):
                validation.append(config.is_validation(document.id))
                order.append(config.order(document.id))
                texts.append(xxhash.xxh3_64_intdigest(text))
                tally.keep(len(text), len(text))
            lengths.extend(len(document_ids) + 1 for document_ids in ids)
        rows = np.zeros(len(lengths), dtype=ROW)
        for name, column in (("validation", validation), ("order", order), ("text", texts), ("length", lengths)):
            rows[name] = np.asarray(column)
        rows["start"] = np.cumsum(rows["length"], dtype=np.int64) - rows["length"]
        rows = rows[np.lexsort((rows["text"], rows["order"], rows["validation"]))]
        with open(outputs[0], "wb") as tokens:
            copy_in_order(unsorted, tokens, rows, dtype)
    rows["start"] = np.cumsum(rows["length"], dtype=np.int64) - rows["length"]
    write_array(outputs[1], rows)
    return TaskResult(
        [tally.counts()], {split: split_totals(rows, split == "validation") for split in ("training", "validation")}
    )


@functools.lru_cache(maxsize=1)
def _load_once(path: Path, identity: tuple[tuple[int, int, int], ...]) -> Tokenizer:
    """Load a tokenizer, once per worker while its files do not change: GPT-2's takes 0.1 s."""
    return load_tokenizer(path)


def gather(tokens: npt.NDArray[Any], starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int32]) -> npt.NDArray[Any]:
    """Join the documents at `starts` of `tokens`; `starts`, `lengths` (documents,), result (sum of lengths,)."""
    size = tokens.dtype.itemsize
    raw = tokens.view(np.uint8).data if len(tokens) else memoryview(b"")
    ends = ((starts + lengths) * size).tolist()
    pieces = [raw[start:end] for start, end in zip((starts * size).tolist(), ends, strict=True)]
    return np.frombuffer(b"".join(pieces), dtype=tokens.dtype)


def blocks(lengths: npt.NDArray[np.int32], tokens: int) -> Iterator[slice]:
    """Yield runs of at most 2^16 documents and at most `tokens` tokens, or of one longer document."""
    ends = np.cumsum(lengths, dtype=np.int64)
    first = 0
    while first < len(lengths):
        before = int(ends[first - 1]) if first else 0
        after = max(int(np.searchsorted(ends, before + tokens, side="right")), first + 1)
        after = min(after, first + _BLOCK_DOCUMENTS)
        yield slice(first, after)
        first = after


def copy_in_order(source: Any, target: BinaryIO, rows: npt.NDArray[Any], dtype: np.dtype[Any]) -> None:
    """Copy the tokens of the documents from a file to another in the order of `rows`, some at a time."""
    source.flush()
    tokens = np.memmap(source, dtype=dtype, mode="r") if int(rows["length"].sum(dtype=np.int64)) else np.empty(0, dtype)
    for block in blocks(rows["length"], _COPIED_TOKENS):
        target.write(gather(tokens, rows["start"][block], rows["length"][block]).data)


def _joined(ids: Sequence[npt.NDArray[Any]], tokenizer: Tokenizer, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Join all documents, each followed by the end-of-document token."""
    end = np.array([tokenizer.end_of_document_id], dtype=ids[0].dtype)
    joined = np.concatenate([piece for document_ids in ids for piece in (document_ids, end)])
    if int(joined.max()) >= tokenizer.vocab_size:  # check before the cast to the vocabulary's type
        raise ConfigError(f"{tokenizer.name} gave token id {joined.max()}, but it has only {tokenizer.vocab_size} ids")
    return joined.astype(dtype)


def split_totals(rows: npt.NDArray[Any], validation: bool) -> dict[str, int]:
    """Count the tokens and documents of a split."""
    lengths = rows["length"][rows["validation"] == validation]
    return {"tokens": int(lengths.sum(dtype=np.int64)), "documents": len(lengths)}


def batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Yield the documents in batches of about _BATCH_CHARACTERS."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size > _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


TOKENIZE = Stage("tokenize", tokenize_shard)
