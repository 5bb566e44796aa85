"""Train a tokenizer on a random sample of the training documents; only the sample is in memory.

The sample is the beginning of the shuffled order. First each shard gives the documents that can belong to it; the
number of documents and bytes of the whole corpus bounds them. The training then takes the first `train_bytes`.
"""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.corpus.split import SplitConfig
from data_prep.corpus.tokenize import TokenizerConfig
from data_prep.documents.quarantine import Quarantine
from data_prep.documents.shards import Document, read_shard, write_shard
from data_prep.execution.tasks import Stage, TaskResult
from gpt.errors import import_extra
from gpt.tokenizer.tokenizers import train_sentencepiece

# Expected size of all candidates: a multiple of train_bytes, and a minimum number of documents. With these the sample
# practically always fills train_bytes (documents of very unequal length make it a little smaller).
_SPARE, _SPARE_DOCUMENTS = 2, 64


@dataclass(frozen=True)
class SampleTask:
    """The candidates: documents of the training split whose number in the order is below `below`."""

    split: SplitConfig
    below: int


@dataclass(frozen=True)
class TrainTask:
    """Settings of the training of a tokenizer."""

    tokenizer: TokenizerConfig
    split: SplitConfig


def sample_bound(train_bytes: int, *, documents: int, n_bytes: int) -> int:
    """Return `below` for a corpus of `documents` documents and `n_bytes` bytes of text; 2^64 means all documents."""
    share = max(_SPARE * train_bytes / max(n_bytes, 1), _SPARE_DOCUMENTS / max(documents, 1))
    return 2**64 if share >= 1 else int(share * 2**64)


def sample_shard(config: SampleTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: a shard to the shard of its candidates."""
    n_documents = 0

    def is_chosen(document: Document) -> bool:
        document.text.encode()  # fails on a text that cannot be written
        return config.split.order(document.id) < config.below and not config.split.is_validation(document.id)

    with write_shard(outputs[0]) as write, Quarantine(SAMPLE.name, inputs, outputs) as quarantine:
        for document, chosen in quarantine.each_or_none(read_shard(inputs[0]), is_chosen):
            n_documents += 1
            if chosen:
                write(document)
    return TaskResult(facts={"documents": n_documents})


def train_tokenizer(config: TrainTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: all shards, or their candidates, to one sentencepiece model."""
    assert config.tokenizer.vocab_size is not None
    train_sentencepiece(
        _training_texts(inputs, config),
        outputs[0],
        vocab_size=config.tokenizer.vocab_size,
        character_coverage=config.tokenizer.character_coverage,
    )
    return TaskResult()


def _training_texts(shards: Iterable[Path], config: TrainTask) -> Iterator[str]:
    """Yield the first texts of the shuffled order, up to train_bytes but at least one, independent of the sharding.

    Reads every shard once. Memory: train_bytes of text and one more document. A document that comes after a removed
    one in the order is never among the first.
    """
    xxhash = import_extra("xxhash", extra="data")
    held: list[tuple[int, str, int]] = []  # (-position in the order, text, bytes): a heap with the last position on top
    held_bytes = 0
    end = 2**128  # the smallest position that was removed
    for shard in shards:
        for document in read_shard(shard):
            if config.split.order(document.id) << 64 >= end or config.split.is_validation(document.id):
                continue
            text = document.text.encode("utf-8", "replace")  # fails in the next step
            position = config.split.order(document.id) << 64 | xxhash.xxh3_64_intdigest(text)  # equal ids: by text
            if position < end:
                heapq.heappush(held, (-position, document.text, len(text)))
                held_bytes += len(text)
            while held_bytes > config.tokenizer.train_bytes and len(held) > 1:
                negative_position, _, n_bytes = heapq.heappop(held)
                held_bytes -= n_bytes
                end = -negative_position
    held.sort()  # the last position first
    while held:
        yield held.pop()[1]  # free it: sentencepiece keeps its own copy


SAMPLE = Stage("sample_text", sample_shard)
TRAIN = Stage("train_tokenizer", train_tokenizer)
