"""Near-copies are those that comparing all pairs finds, in every order and sharding."""

import json
import random
import re
from itertools import combinations

import numpy as np
import pytest
from dedup_cases import SMALL, clusters_left, deduplicate, edited

from data_prep.dedup.clusters import EDGE
from data_prep.dedup.fuzzy import FuzzyConfig, PairTask, find_pairs
from data_prep.dedup.minhash import (
    permutations,
    shingles,
    signature,
)
from data_prep.dedup.signatures import MinHash, SignTask, sign_texts
from data_prep.dedup.sorted_rows import Limits, Range
from data_prep.documents.shards import Document, write_shard
from gpt.errors import ConfigError
from launch.config.recipe import build

pytest.importorskip("xxhash", reason="the extra 'data' is not installed")
pytest.importorskip("zstandard", reason="the extra 'data' is not installed")


def planted(prose, *, n=30, sentences=10):
    """Texts with copies that are edited more and more, so that all similarities occur, in random order."""
    documents = []
    for seed in range(n):
        text = prose(seed, sentences)
        documents.append(Document(f"{seed}", text))
        for copy, share in enumerate((0.0, 0.01, 0.03, 0.08, 0.2)[: seed % 6]):
            documents.append(Document(f"{seed}/{copy}", edited(text, share, 7 * seed + copy)))
    documents += [
        Document("nothing a", "?! …"),
        Document("nothing b", "?! ..."),
        Document("ünïcode", "Ünïcodé ‘words’ é"),
    ]
    documents += [Document("ünïcode 2", "ÜNÏCODÉ “words” é"), Document("few", "just three words")]
    random.Random(0).shuffle(documents)
    return documents


def words_of(config, text):
    """N-grams as sets of word tuples, independent of our code."""
    words = text.lower().split() if config.tokens == "whitespace" else re.findall(r"\w+", text.lower())
    n = min(config.ngram_words, len(words))
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} if words else set()


@pytest.mark.parametrize(
    "config",
    [
        FuzzyConfig(method="gpt3", neighbours=3),  # buckets have half of the texts; similar ones are adjacent
        FuzzyConfig(ngram_words=3, bands=40, rows=2, min_jaccard=0.7, neighbours=1000),
    ],
    ids=["gpt3", "compared"],
)
def test_clusters_match_a_comparison_of_all_pairs(tmp_path, prose, config):
    """There are enough bands to find all similar pairs (at the threshold, all but one in 10^6)."""
    documents = planted(prose)
    sets = [words_of(config, document.text) for document in documents]
    similar = [
        (a, b)
        for (a, x), (b, y) in combinations(enumerate(sets), 2)
        if x and y and len(x & y) / len(x | y) >= config.min_jaccard
    ]
    expected = clusters_left(documents, similar, "minhash")
    assert 50 < len(expected) < len(documents) - 30
    for trial, (n_shards, limits) in enumerate([(1, None), (5, SMALL)]):
        random.Random(trial).shuffle(documents)
        gone = deduplicate(tmp_path / str(trial), documents, n_shards, config, limits=limits)
        assert gone == {name: ("near_duplicate", f"copy of {best}") for name, best in expected.items()}


def test_clusters_match_a_comparison_of_all_bands(tmp_path, prose):
    """The default, without comparison: all pairs of signatures that share a band."""
    documents, config, functions = planted(prose), FuzzyConfig(), permutations(14 * 8)
    bands = [
        {(i, band.tobytes()) for i, band in enumerate(signature(grams, functions).reshape(14, 8)) if len(grams)}
        for grams in (shingles(document.text, 5) for document in documents)
    ]
    expected = clusters_left(
        documents, [p for p in combinations(range(len(bands)), 2) if bands[p[0]] & bands[p[1]]], "minhash"
    )
    assert 50 < len(expected) < len(documents) - 30
    for trial, (n_shards, limits) in enumerate([(7, None), (2, SMALL)]):
        gone = deduplicate(tmp_path / str(trial), documents, n_shards, config, limits=limits)
        assert {name: detail for name, (_, detail) in gone.items()} == {
            name: f"copy of {best}" for name, best in expected.items()
        }
    manifest = tmp_path / "0/work/manifest.jsonl"
    n_tasks = manifest.read_text().count('"key"')
    assert deduplicate(tmp_path / "0", documents, 7, config).keys() == expected.keys()
    assert manifest.read_text().count('"key"') == n_tasks, "a second run has nothing to do"


@pytest.mark.parametrize("config", [FuzzyConfig(), FuzzyConfig(min_jaccard=0.7)], ids=["bands", "compared"])
def test_the_pairs_of_a_bucket_are_linear_in_its_size(tmp_path, config):
    """n documents in the same buckets make n or n x neighbours pairs, not n^2, and are never in memory together."""
    n, limits = 3000, Limits(bytes_in_memory=16000)
    with write_shard(tmp_path / "shard") as write:
        for i in range(n):
            write(Document(str(i), "We use cookies to give you the best experience on our site."))
    setting = config.setting
    outputs = [tmp_path / name for name in ("rows", "about", "notes")]
    sign_texts(SignTask(setting, limits), (tmp_path / "shard",), tuple(outputs))
    index = {"format": "triaxial-dedup-index", "version": 1, "kind": "minhash", "setting": {}, "folder": "."}
    index |= {"shards": [], "groups": [{"path": "rows", "bytes": 0, "digest": ""}]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    rows = np.fromfile(tmp_path / "rows", setting.row_type)
    assert len(rows) == 14 * n
    rows["position"] += np.uint64(4095 << 52)
    rows.tofile(tmp_path / "rows")
    find_pairs(PairTask(Range(), setting, limits), (tmp_path / "index.json",), (tmp_path / "pairs",))
    pairs = np.fromfile(tmp_path / "pairs", EDGE)
    assert len(np.unique([pairs["node"], pairs["other"]])) == n
    if config.min_jaccard == 0:
        assert len(pairs) == n - 1
    else:  # all buckets have the same order, so each document has the same 16 before it, and the first ones fewer
        assert len(pairs) == 16 * n - sum(range(17))


def test_invalid_settings_are_errors():
    with pytest.raises(ConfigError, match=r"dedup_minhash\.bands = 0"):
        FuzzyConfig(bands=0)
    with pytest.raises(ConfigError, match=r"min_jaccard = 1\.5"):
        FuzzyConfig(min_jaccard=1.5)
    with pytest.raises(ConfigError, match=r"min_jaccard = 0\.0 is invalid: with rows = 1"):
        FuzzyConfig(method="gpt3", min_jaccard=0.0)
    with pytest.raises(
        ConfigError, match=r"dedup_minhash\.method = 'gpt4' is invalid: must be one of .*; did you mean 'gpt3'"
    ):
        build(FuzzyConfig, {"method": "gpt4"}, where="dedup_minhash")
    table = {"method": "gpt3", "min_jaccard": 1, "tokens": "words"}
    assert build(FuzzyConfig, table, where="").setting == MinHash("words", 1, 10, 1, min_jaccard=1.0, neighbours=16)
    assert (FuzzyConfig(method="gpt3", bands=20).setting.bands, FuzzyConfig(method="gpt3").rows) == (20, 1)
