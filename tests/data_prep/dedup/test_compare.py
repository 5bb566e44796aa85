"""Pairs are compared exactly, whatever is cached."""

import json
from itertools import combinations

import numpy as np
import pytest
from dedup_cases import edited

from data_prep.dedup.clusters import EDGE, edges
from data_prep.dedup.compare import CompareTask, compare
from data_prep.dedup.fuzzy import FuzzyConfig
from data_prep.dedup.index import position
from data_prep.dedup.minhash import jaccard, shingles
from data_prep.dedup.signatures import SignTask, sign_texts
from data_prep.dedup.sorted_rows import Limits, Range, write_sorted
from data_prep.documents.shards import Document, write_shard

pytest.importorskip("xxhash", reason="the extra 'data' is not installed")
pytest.importorskip("zstandard", reason="the extra 'data' is not installed")


@pytest.mark.parametrize("bytes_in_memory", [1, 1000, 1 << 20])  # caches nothing, some documents, all
def test_similar_pairs_are_those_of_the_exact_similarity(tmp_path, prose, bytes_in_memory):
    texts = [edited(prose(seed), share, seed) for seed in range(4) for share in (0.0, 0.01, 0.04, 0.3)]
    with write_shard(tmp_path / "shard") as write:
        for number, text in enumerate(texts):
            write(Document(str(number), text))
    setting, limits = FuzzyConfig(min_jaccard=0.4).setting, Limits(bytes_in_memory=bytes_in_memory)
    outputs = tuple(tmp_path / name for name in ("s.rows", "s.about", "s.notes"))
    sign_texts(SignTask(setting, Limits()), (tmp_path / "shard",), outputs)
    index = {"format": "triaxial-dedup-index", "version": 1, "kind": "minhash", "setting": {}, "folder": "."}
    index |= {"shards": [{"name": "s", "documents": len(texts), "digests": ["", ""]}], "groups": []}
    (tmp_path / "index.json").write_text(json.dumps(index))
    pairs = [(position(0, b), position(0, a)) for a, b in combinations(range(len(texts)), 2)]
    with write_sorted(tmp_path / "pairs", EDGE, bytes_in_memory=1600) as append:
        columns = np.array(pairs, np.uint64)
        append(edges(columns[:, 0], columns[:, 1]))
    config = CompareTask(Range(), 0.4, 1, limits)
    facts = compare(config, (tmp_path / "index.json", tmp_path / "pairs"), (tmp_path / "similar",)).facts
    grams = {position(0, number): shingles(text, 5) for number, text in enumerate(texts)}
    expected = sorted(pair for pair in pairs if jaccard(grams[pair[0]], grams[pair[1]]) >= 0.4)
    assert np.fromfile(tmp_path / "similar", EDGE).tolist() == expected
    assert facts == {"pairs": {"compared": len(pairs), "similar": len(expected)}}
    assert 4 < len(expected) < len(pairs) / 2
