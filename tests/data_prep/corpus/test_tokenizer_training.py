"""The tokenizer is trained on the first documents of the order, however they are sharded."""

import numpy as np
import pytest
from corpus_cases import SPLIT, write_shards

from data_prep.corpus import tokenizer_training
from data_prep.corpus.tokenize import TokenizerConfig
from data_prep.corpus.tokenizer_training import SampleTask, TrainTask, sample_bound, sample_shard
from data_prep.documents.shards import Document, read_shard

pytest.importorskip("zstandard", reason="the extra 'data' is not installed")
pytest.importorskip("xxhash", reason="the extra 'data' is not installed")


def seen_by_training(folder, documents, n_shards, train_bytes):
    """Return the texts that the tokenizer is trained on, and the candidates' share of all bytes."""
    shards = write_shards(folder, documents, n_shards)
    n_bytes = sum(document.n_bytes for document in documents)
    below = sample_bound(train_bytes, documents=len(documents), n_bytes=n_bytes)
    samples = [folder / f"{number}.sample.zst" for number in range(n_shards)]
    for shard, sample in zip(shards, samples, strict=True):
        sample_shard(SampleTask(SPLIT, below), (shard,), (sample,))
    size = sum(document.n_bytes for sample in samples for document in read_shard(sample))
    config = TrainTask(TokenizerConfig(vocab_size=400, train_bytes=train_bytes), SPLIT)
    return list(tokenizer_training._training_texts(samples, config)), size / n_bytes


def test_every_sharding_trains_on_the_first_documents_of_the_order(tmp_path, prose):
    documents = [Document(f"doc-{n}", prose(n, 1 + n % 9)) for n in range(1500)]
    training = sorted((d for d in documents if not SPLIT.is_validation(d.id)), key=lambda d: SPLIT.order(d.id))
    ends = np.cumsum([d.n_bytes for d in training])
    for case, train_bytes in enumerate((20_000, 10_000_000)):
        expected = [d.text for d in training[: int(np.searchsorted(ends, train_bytes, side="right"))]]
        found, share = seen_by_training(tmp_path / f"{case}-3", documents, 3, train_bytes)
        assert found == expected
        assert seen_by_training(tmp_path / f"{case}-1", documents[::-1], 1, train_bytes)[0] == expected
        assert share < 0.2 or case == 1, "the candidates are a small part of the shards"
    shards = write_shards(tmp_path / "more", documents, 4)
    for train_bytes in range(5_000, 65_000, 6_000):
        config = TrainTask(TokenizerConfig(vocab_size=400, train_bytes=train_bytes), SPLIT)
        expected = [d.text for d in training[: int(np.searchsorted(ends, train_bytes, side="right"))]]
        assert list(tokenizer_training._training_texts(shards, config)) == expected
    large = [Document(f"large-{n}", prose(n, 60)) for n in range(5)]
    found, _ = seen_by_training(tmp_path / "large", large, 2, 100)
    first = min((d for d in large if not SPLIT.is_validation(d.id)), key=lambda d: SPLIT.order(d.id))
    assert found == [first.text], "at least one document, even above train_bytes"
