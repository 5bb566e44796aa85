"""Trains a tokenizer on a random part of the training documents; holds no more text than that part.

The part is the beginning of the shuffled order. Each shard gives those of its documents that can belong to it, which
the number of documents and bytes in the whole corpus bounds; the training then takes the first `train_bytes` of them.
"""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.corpus.split import SplitConfig
from data_prep.corpus.tokenize import TokenizerConfig
from data_prep.documents.shards import read_shard, write_shard
from data_prep.execution.tasks import Stage, TaskResult
from gpt.errors import import_extra
from gpt.tokenizer.tokenizers import train_sentencepiece

# Of the candidates that the shards give, how many times train_bytes, and at least how many documents: enough that the
# part is full except by a chance that does not happen (documents of very unequal length make it a little smaller).
_SPARE, _SPARE_DOCUMENTS = 2, 64


@dataclass(frozen=True)
class SampleTask:
    """Which documents may be trained on: those of the training split whose place in the order is below `below`."""

    split: SplitConfig
    below: int


@dataclass(frozen=True)
class TrainTask:
    """What the training of a tokenizer depends on."""

    tokenizer: TokenizerConfig
    split: SplitConfig


def sample_bound(train_bytes: int, *, documents: int, n_bytes: int) -> int:
    """The `below` of a corpus of so many documents and bytes of text; 2^64 when all of it is to be read."""
    share = max(_SPARE * train_bytes / max(n_bytes, 1), _SPARE_DOCUMENTS / max(documents, 1))
    return 2**64 if share >= 1 else int(share * 2**64)


def sample_shard(config: SampleTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: a shard to the shard of its documents that may be trained on."""
    with write_shard(outputs[0]) as write:
        for document in read_shard(inputs[0]):
            if config.split.order(document.id) < config.below and not config.split.is_validation(document.id):
                write(document)
    return TaskResult()


def train_tokenizer(config: TrainTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: all shards, or samples of them, to one sentencepiece model."""
    assert config.tokenizer.vocab_size is not None
    train_sentencepiece(
        _training_texts(inputs, config),
        outputs[0],
        vocab_size=config.tokenizer.vocab_size,
        character_coverage=config.tokenizer.character_coverage,
    )
    return TaskResult()


def _training_texts(shards: Iterable[Path], config: TrainTask) -> Iterator[str]:
    """The texts that come first in the shuffled order, up to train_bytes but at least one: the same however sharded.

    Reads every shard once. Holds at most train_bytes of text and one document more: whatever comes after a document
    that had to go can never be among the first again.
    """
    xxhash = import_extra("xxhash", extra="data")
    held: list[tuple[int, str, int]] = []  # (-place in the order, text, bytes): the last in the order on top
    held_bytes = 0
    end = 2**128  # the first place in the order that is known to be too far
    for shard in shards:
        for document in read_shard(shard):
            if config.split.order(document.id) << 64 >= end or config.split.is_validation(document.id):
                continue
            text = document.text.encode()
            place = config.split.order(document.id) << 64 | xxhash.xxh3_64_intdigest(text)  # equal ids: by text
            if place < end:
                heapq.heappush(held, (-place, document.text, len(text)))
                held_bytes += len(text)
            while held_bytes > config.tokenizer.train_bytes and len(held) > 1:
                negative_place, _, n_bytes = heapq.heappop(held)
                held_bytes -= n_bytes
                end = -negative_place
    held.sort()  # the last in the order first
    while held:
        yield held.pop()[1]  # and let go of, as sentencepiece keeps its own copy


SAMPLE = Stage("sample_text", sample_shard)
TRAIN = Stage("train_tokenizer", train_tokenizer)
