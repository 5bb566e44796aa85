"""Exact copies are those that comparing all pairs finds, in every order and sharding."""

import random
from itertools import combinations

import pytest
from dedup_cases import SMALL, clusters_left, deduplicate

from data_prep.dedup.exact import ExactConfig
from data_prep.documents.shards import Document

pytest.importorskip("xxhash", reason="the extra 'data' is not installed")
pytest.importorskip("zstandard", reason="the extra 'data' is not installed")


def test_exact_copies_are_removed(tmp_path, prose):
    texts = [prose(seed) for seed in range(8)]
    documents = [Document(f"{seed}-{copy}", texts[seed]) for copy in range(3) for seed in range(8) if copy <= seed]
    documents += [Document("shout", texts[0].upper()), Document("wide", texts[1].replace(" ", "  "))]
    documents += [Document(f"boilerplate {i}", "All rights reserved.") for i in range(1000)]
    pairs = [(a, b) for (a, x), (b, y) in combinations(enumerate(documents), 2) if x.text == y.text]
    expected = clusters_left(documents, pairs, "exact")
    for trial, (n_shards, limits) in enumerate([(1, None), (5, SMALL)]):
        random.Random(trial).shuffle(documents)
        gone = deduplicate(tmp_path / str(trial), documents, n_shards, ExactConfig(), limits=limits)
        assert gone == {name: ("duplicate", f"copy of {best}") for name, best in expected.items()}
    loose = deduplicate(tmp_path / "loose", documents, 3, ExactConfig(ignore_case_and_space=True))
    assert len(loose) == len(expected) + 2
