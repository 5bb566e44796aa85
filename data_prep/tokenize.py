"""Tokenizer training, and shards to token ids; decides each document's split and place, never writes a corpus."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.counts import Tally
from data_prep.documents import Document, keyed_hash, parent_id, read_shard
from data_prep.engine import Result, Stage
from data_prep.files import write_array
from gpt.errors import ConfigError, import_extra
from gpt.token_files import token_dtype
from gpt.tokenizer import Tokenizer, load_tokenizer, train_sentencepiece

# Where a document's tokens lie in its shard's `.tokens`, and where the document goes.
ROW = np.dtype([("order", "<u8"), ("text", "<u8"), ("start", "<i8"), ("stop", "<i8"), ("validation", "?")])
_BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class TokenizerConfig:
    """Section [tokenizer]: `path` names a sentencepiece .model or a Hugging Face tokenizer.json to use as it is.

    Without it, a byte-pair vocabulary of `vocab_size` pieces is trained on at most `train_bytes` of the training
    documents, a random part if there are more. `character_coverage` is the share of characters that get a piece.
    """

    path: Path | None = None
    vocab_size: int | None = None
    train_bytes: int = 100_000_000
    character_coverage: float = 0.9995

    def __post_init__(self) -> None:
        if self.path is None and self.vocab_size is None:
            raise ConfigError("tokenizer: give vocab_size to train a tokenizer, or path to use an existing one")
        if self.vocab_size is not None and self.vocab_size < 300:
            raise ConfigError(
                f"tokenizer.vocab_size = {self.vocab_size} must be at least 300: 256 bytes, 2 marks and some pieces"
            )


@dataclass(frozen=True)
class SplitConfig:
    """How documents are divided and ordered: by hashes of their ids with `seed`, so neither depends on shards."""

    validation_fraction: float
    seed: int

    def is_validation(self, document_id: str) -> bool:
        """Whether the document goes to the validation split; pieces of one document go together."""
        return keyed_hash(parent_id(document_id), key=f"validation {self.seed}") < self.validation_fraction * 2**64

    def order(self, document_id: str) -> int:
        """The document's place in its split, as a sorting key."""
        return keyed_hash(document_id, key=f"shuffle {self.seed}")


@dataclass(frozen=True)
class TrainTask:
    """What the training of a tokenizer depends on."""

    tokenizer: TokenizerConfig
    split: SplitConfig


def train_tokenizer(config: TrainTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> Result:
    """Stage function: all shards to one sentencepiece model."""
    assert config.tokenizer.vocab_size is not None
    train_sentencepiece(
        _training_texts(inputs, config),
        outputs[0],
        vocab_size=config.tokenizer.vocab_size,
        character_coverage=config.tokenizer.character_coverage,
    )
    return Result()


def _training_texts(shards: Sequence[Path], config: TrainTask) -> Iterator[str]:
    """Texts of training documents in shuffled order, up to train_bytes: the same whatever the shards."""
    sizes = []  # (place in the order, shard, row, bytes)
    for number, shard in enumerate(shards):
        for row, document in enumerate(read_shard(shard)):
            if not config.split.is_validation(document.id):
                sizes.append((config.split.order(document.id), number, row, document.n_bytes))
    sizes.sort()
    budget = config.tokenizer.train_bytes
    chosen: dict[tuple[int, int], int] = {}  # (shard, row): place in the order
    for place, (_, number, row, n_bytes) in enumerate(sizes):
        if n_bytes > budget and chosen:
            break
        chosen[number, row] = place
        budget -= n_bytes
    texts = [""] * len(chosen)
    for number, shard in enumerate(shards):
        for row, document in enumerate(read_shard(shard)):
            if (number, row) in chosen:
                texts[chosen[number, row]] = document.text
    yield from texts


def tokenize_shard(config: SplitConfig, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> Result:
    """Stage function: (shard, tokenizer) to (token ids of all documents one after another, one ROW for each)."""
    xxhash = import_extra("xxhash", extra="data")
    tokenizer = load_tokenizer(inputs[1])
    dtype = token_dtype(tokenizer.vocab_size)
    tally = Tally("tokenize")
    rows: list[tuple[Any, ...]] = []
    position = 0
    with open(outputs[0], "wb") as file:
        for document, ids in _encode(read_shard(inputs[0]), tokenizer):
            ids.append(tokenizer.end_of_document_id)
            file.write(np.array(ids).astype(dtype).tobytes())
            text_hash = xxhash.xxh3_64_intdigest(document.text.encode())
            where = (position, position + len(ids))
            rows.append((config.order(document.id), text_hash, *where, config.is_validation(document.id)))
            position += len(ids)
            tally.keep(document.n_bytes, document.n_bytes)
    write_array(outputs[1], np.array(rows, dtype=ROW))
    return Result([tally.counts()], {"tokens": position})


def _encode(documents: Iterator[Document], tokenizer: Tokenizer) -> Iterator[tuple[Document, list[int]]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size > _BATCH_CHARACTERS:
            yield from zip(batch, tokenizer.encode_batch([d.text for d in batch]), strict=True)
            batch, size = [], 0
    yield from zip(batch, tokenizer.encode_batch([d.text for d in batch]), strict=True)


TRAIN = Stage(
    "train_tokenizer",
    train_tokenizer,
    ("tokenize", "documents", "gpt.tokenizer"),
    ("sentencepiece", "zstandard"),
)
TOKENIZE = Stage(
    "tokenize",
    tokenize_shard,
    ("tokenize", "documents", "gpt.tokenizer", "gpt.token_files"),
    ("sentencepiece", "tokenizers", "zstandard", "xxhash"),
)
