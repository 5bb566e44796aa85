"""Planted copies are found, and which one stays depends on the documents alone."""

import random

import numpy as np
import pytest

from data_prep.dedup_exact import COPY, ExactConfig, choose_copies, digest_texts, remove_rows
from data_prep.dedup_minhash import FuzzyConfig, find_near_copies, sign_texts
from data_prep.documents import Document, read_shard, write_shard
from data_prep.files import read_array
from data_prep.minhash import jaccard, permutations, shingles, signature
from gpt.errors import ConfigError

pytest.importorskip("xxhash", reason="the extra 'data' is not installed")
pytest.importorskip("zstandard", reason="the extra 'data' is not installed")


def run(folder, documents, n_shards, digest, choose, config):
    """Ids that stay when the documents lie in `n_shards` shards."""
    folder.mkdir()
    shards, digests = [], []
    for number in range(n_shards):
        shard = folder / f"{number}.zst"
        with write_shard(shard) as write:
            for document in documents[number::n_shards]:
                write(document)
        digest(config, (shard,), (folder / f"{number}.npy",))
        shards.append(shard)
        digests.append(folder / f"{number}.npy")
    lists = tuple(folder / f"{number}.remove.npy" for number in range(n_shards))
    choose(config, (*digests, *shards) if choose is find_near_copies else tuple(digests), lists)
    kept = []
    for shard, removed in zip(shards, lists, strict=True):
        result = remove_rows(COPY, (shard, removed), (folder / "out.zst", folder / "trace"))
        stay = list(read_shard(folder / "out.zst"))
        (counts,) = result.counts
        assert counts.documents_out == len(stay)
        assert counts.dropped.get("duplicate", 0) == len(read_array(removed))
        kept += [document.id for document in stay]
    return sorted(kept)


def test_exact_copies(tmp_path, prose):
    texts = [prose(seed) for seed in range(8)]
    documents = [Document(f"{seed}-{copy}", texts[seed]) for copy in range(3) for seed in range(8) if copy <= seed]
    documents += [Document("shout", texts[0].upper()), Document("wide", texts[1].replace(" ", "  "))]
    reference = None
    for trial, n_shards in enumerate((1, 2, 5)):
        random.Random(trial).shuffle(documents)
        kept = run(tmp_path / str(trial), documents, n_shards, digest_texts, choose_copies, ExactConfig())
        assert len(kept) == 10
        assert {name.split("-")[0] for name in kept} == {*map(str, range(8)), "shout", "wide"}
        reference = reference or kept
        assert kept == reference
    loose = ExactConfig(ignore_case_and_space=True)
    assert len(run(tmp_path / "loose", documents, 3, digest_texts, choose_copies, loose)) == 8


def edited(text: str, share: float, seed: int) -> str:
    """The text with a share of its words exchanged."""
    rng = random.Random(seed)
    return " ".join(f"edit{rng.randrange(9999)}" if rng.random() < share else word for word in text.split(" "))


def test_near_copies(tmp_path, prose):
    """Light edits go, heavy ones stay, unrelated texts stay, and the longest of a cluster is what is kept."""
    documents = []
    for seed in range(6):
        text = prose(seed, 60)
        documents.append(Document(f"{seed} long", text + "\n" + prose(100 + seed, 4)))
        documents += [Document(f"{seed} light {n}", edited(text, 0.01, n)) for n in range(3)]
        documents.append(Document(f"{seed} heavy", edited(text, 0.3, 9)))
    documents += [Document("empty a", "?!"), Document("empty b", "..."), Document("short", "just three words")]
    documents += [Document("short again", "Just three WORDS")]
    reference = None
    for trial, n_shards in enumerate((1, 3)):
        random.Random(trial).shuffle(documents)
        kept = run(tmp_path / str(trial), documents, n_shards, sign_texts, find_near_copies, FuzzyConfig())
        expected = {f"{seed} {kind}" for seed in range(6) for kind in ("long", "heavy")} | {"empty a", "empty b"}
        assert expected <= set(kept)
        assert len(kept) == len(expected) + 1, "of the two short ones one stays"
        reference = reference or kept
        assert kept == reference
    strict = run(tmp_path / "strict", documents, 2, sign_texts, find_near_copies, FuzzyConfig(min_jaccard=1.0))
    assert len(strict) == len(documents) - 1, "only the short pair has equal word n-grams"


def test_signatures_estimate_jaccard(prose):
    multipliers, offsets = permutations(1024)
    text = prose(1, 80)
    for share in (0.005, 0.02, 0.06):
        a, b = shingles(text, 5), shingles(edited(text, share, 3), 5)
        exact = jaccard(a, b)
        same = signature(a, multipliers, offsets) == signature(b, multipliers, offsets)
        assert abs(float(np.mean(same)) - exact) < 4 * np.sqrt(exact * (1 - exact) / 1024) + 0.01
        assert 0 < exact < 1


def test_candidates_follow_the_banding_curve():
    """Share of pairs that 14 x 8 bands catch, against 1 - (1 - J^8)^14, for sets of numbers of a known similarity."""
    rng = np.random.default_rng(0)
    multipliers, offsets = permutations(14 * 8)
    for j in (0.5, 0.7, 0.8, 0.9):
        shared = round(400 * j)
        rest = (400 - shared) // 2
        caught = 0
        for _ in range(150):
            numbers = rng.integers(0, 2**64, size=shared + 2 * rest, dtype=np.uint64)
            a = signature(numbers[: shared + rest], multipliers, offsets).reshape(14, 8)
            b = signature(np.concatenate([numbers[:shared], numbers[shared + rest :]]), multipliers, offsets).reshape(
                14, 8
            )
            caught += bool((a == b).all(axis=1).any())
        expected = 1 - (1 - j**8) ** 14
        assert abs(caught / 150 - expected) < 4 * np.sqrt(expected * (1 - expected) / 150) + 0.01


def test_shingles():
    assert len(shingles("One two, three four five six", 5)) == 2
    assert len(shingles("one TWO three", 5)) == 1
    assert np.array_equal(shingles("one two three", 5), shingles("One, two: THREE!", 5))
    assert len(shingles("", 5)) == len(shingles("?!", 5)) == 0
    assert len(shingles("a b a b a b", 2)) == 2
    # Pinned: signatures of today must be comparable with those of any later version.
    assert shingles("one two three", 2).tolist() == PINNED_GRAMS
    assert signature(shingles("one two three", 2), *permutations(3)).tolist() == PINNED_SIGNATURE


PINNED_GRAMS = [14802987826439165835, 17931599150886288687]
PINNED_SIGNATURE = [1497102204, 975938226, 2897591941]


def test_settings_that_make_no_sense():
    with pytest.raises(ConfigError, match=r"dedup_minhash\.bands = 0"):
        FuzzyConfig(bands=0)
    with pytest.raises(ConfigError, match=r"min_jaccard = 1\.5"):
        FuzzyConfig(min_jaccard=1.5)
