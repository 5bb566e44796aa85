"""A shard's token ids are in the order of the corpus."""

import numpy as np
import pytest
from corpus_cases import SPLIT, write_shards

from data_prep.corpus.tokenize import ROW, TokenizerConfig, blocks, tokenize_shard
from data_prep.corpus.tokenizer_training import TrainTask, train_tokenizer
from data_prep.documents.shards import Document
from gpt.errors import ConfigError
from gpt.tokenizer.tokenizers import load_tokenizer

pytest.importorskip("zstandard", reason="the extra 'data' is not installed")
pytest.importorskip("xxhash", reason="the extra 'data' is not installed")


def test_blocks_of_documents_have_at_most_the_tokens_or_one_document():
    lengths = np.array([3, 3, 10, 1, 1, 1, 5], dtype=np.int32)
    assert [lengths[block].tolist() for block in blocks(lengths, 6)] == [[3, 3], [10], [1, 1, 1], [5]]
    assert ROW.itemsize == 29, "docs/guides/data/corpus.md says what a document costs"


def test_rows_and_tokens_of_a_shard_are_in_the_order_of_the_corpus(tmp_path, prose):
    (shard,) = write_shards(tmp_path / "a", [Document(f"d{n}", prose(n, 3)) for n in range(40)], 1)
    train_tokenizer(TrainTask(TokenizerConfig(vocab_size=400), SPLIT), (shard,), (tmp_path / "t.model",))
    result = tokenize_shard(SPLIT, (shard, tmp_path / "t.model"), (tmp_path / "a.tokens", tmp_path / "a.npy"))
    rows, ids = np.load(tmp_path / "a.npy"), np.fromfile(tmp_path / "a.tokens", "<u2")
    tokenizer, by_order = load_tokenizer(tmp_path / "t.model"), {SPLIT.order(f"d{n}"): n for n in range(40)}
    keys = [(bool(row["validation"]), int(row["order"])) for row in rows]
    assert keys == sorted((SPLIT.is_validation(f"d{n}"), SPLIT.order(f"d{n}")) for n in range(40))
    for row in rows:
        *text, end = ids[row["start"] : row["start"] + row["length"]].tolist()
        assert tokenizer.decode(text) == prose(by_order[int(row["order"])], 3)
        assert end == tokenizer.end_of_document_id
    assert {split: about["documents"] for split, about in result.facts.items()} == {
        "training": sum(not validation for validation, _ in keys),
        "validation": sum(validation for validation, _ in keys),
    }


def test_invalid_settings_are_errors():
    with pytest.raises(ConfigError, match="Set vocab_size to train a tokenizer, or path"):
        TokenizerConfig()
    with pytest.raises(ConfigError, match=r"vocab_size = 200 is invalid: must be at least 300"):
        TokenizerConfig(vocab_size=200)
    with pytest.raises(ConfigError, match=r"character_coverage = 0\.5 is invalid: must be between 0\.98 and 1"):
        TokenizerConfig(vocab_size=400, character_coverage=0.5)
    with pytest.raises(ConfigError, match=r"train_bytes = 0 is invalid: must be at least 1"):
        TokenizerConfig(vocab_size=400, train_bytes=0)
