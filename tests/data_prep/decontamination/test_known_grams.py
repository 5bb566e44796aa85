"""N is that of the paper's table C.1, and the documents of each gram are counted."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.corpus.split import SplitConfig
from data_prep.decontamination.evaluation_sets import EvaluationSet, find_set_files, read_examples
from data_prep.decontamination.known_grams import (
    IndexTask,
    LengthRule,
    SearchTask,
    add_documents,
    gram_length,
    index_examples,
    search_shard,
)
from data_prep.decontamination.ngrams import count_words
from data_prep.documents.shards import Document, write_shard

pytest.importorskip("xxhash", reason="the extra 'data' is not installed")
pytest.importorskip("zstandard", reason="the extra 'data' is not installed")


SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


def test_n_matches_table_c1():
    """N of the five word-scrambling sets in table C.1 of the paper; it is 7 only if punctuation separates words."""
    rule = LengthRule(8, 13)
    assert gram_length([5] * 100, rule, synthetic=False) == 8
    assert gram_length([5] * 100, rule, synthetic=True) == 5
    assert gram_length([40] * 100, rule, synthetic=True) == 13
    assert gram_length([9, *[30] * 9, *[10] * 90], rule, synthetic=False) == 10
    assert gram_length([], rule, synthetic=False) == 13
    if not SHARED.is_dir():
        pytest.skip("../shared/data is absent")
    published = {
        "random_insertion_in_word": 7,
        "cycle_letters_in_word": 2,
        "mid_word_1_anagrams": 2,
        "mid_word_2_anagrams": 2,
        "reversed_words": 2,
    }
    for name, n in published.items():
        one = EvaluationSet(name, (f"{SHARED}/gpt3/{name}.jsonl.gz",), fields=("context", "completion"))
        found = list(read_examples(one, find_set_files((one,), where="sets")[0]))
        assert len(found) == 10_000
        assert gram_length([count_words(example.text) for example in found[::5]], rule, synthetic=True) == n


def test_documents_of_each_gram_are_found_and_counted(tmp_path):
    """Texts longer than a batch, and only the documents of the training split."""
    (tmp_path / "set.txt").write_text("one two three four")
    index = tuple(tmp_path / name for name in ("numbers.npy", "grams.npy", "examples.zst"))
    task = IndexTask((EvaluationSet("s", ("set.txt",)),), (1,), LengthRule(2, 2))
    facts = index_examples(task, (tmp_path / "set.txt",), index).facts
    assert facts["sets"] == [{"name": "s", "examples": 1, "too_short": 0, "n_words": 2, "grams": 3}]
    text = "one two " + "x " * 40_000
    documents = [Document(f"d{n}", text + ("three four" if n % 2 else "two three")) for n in range(20)]
    with write_shard(tmp_path / "shard") as write:
        for document in documents:
            write(document)
    split = SplitConfig(validation_fraction=0.3, seed=0)
    training = [n for n in range(20) if not split.is_validation(f"d{n}")]
    result = search_shard(SearchTask((2,), split), (tmp_path / "shard", index[0]), (tmp_path / "hits.npy",))
    assert result.facts["documents"] == len(training) < 20
    hits = np.load(tmp_path / "hits.npy")
    assert sorted(set(hits["row"].tolist())) == training
    counts = np.zeros(3, np.int64)
    add_documents(counts, tmp_path / "hits.npy")
    odd = sum(n % 2 for n in training)
    assert sorted(counts.tolist()) == sorted([len(training), odd, len(training) - odd])
