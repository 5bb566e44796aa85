"""Signatures estimate the Jaccard similarity, and bands find similar texts."""

import re

import numpy as np
import pytest
from dedup_cases import edited

from data_prep.dedup.minhash import (
    band_keys,
    count_bits,
    following,
    jaccard,
    max_differences,
    permutations,
    shingles,
    signature,
    sketches,
    split_words,
)

pytest.importorskip("xxhash", reason="the extra 'data' is not installed")


def test_signatures_estimate_jaccard(prose):
    functions = permutations(1024)
    text = prose(1, 80)
    for share in (0.005, 0.02, 0.06):
        a, b = shingles(text, 5), shingles(edited(text, share, 3), 5)
        exact = jaccard(a, b)
        assert exact == len(set(a.tolist()) & set(b.tolist())) / len(set(a.tolist()) | set(b.tolist()))
        same = signature(a, functions) == signature(b, functions)
        assert abs(float(np.mean(same)) - exact) < 4 * np.sqrt(exact * (1 - exact) / 1024) + 0.01
        assert 0 < exact < 1
        pair = sketches(np.stack([signature(a, functions), signature(b, functions)])[:, -64:])
        assert (
            abs(int(count_bits(pair[:1] ^ pair[1:])[0]) / 64 - (1 - exact) / 2)
            < 4 * np.sqrt((1 - exact**2) / 4 / 64) + 0.01
        )
    assert jaccard(a, a[:0]) == jaccard(a[:0], a[:0]) == 0


def test_bits_differences_and_following_bands():
    numbers = np.random.default_rng(0).integers(0, 2**64, 1000, dtype=np.uint64, endpoint=False)
    assert count_bits(numbers).tolist() == [int(n).bit_count() for n in numbers]
    # By scipy.stats.binom.isf(1e-6, 64, (1 - j) / 2).
    assert [max_differences(j) for j in (0.0, 0.5, 0.7, 0.8, 0.9, 1.0)] == [50, 34, 25, 20, 14, 0]
    keys = np.arange(12, dtype=np.uint64).reshape(1, 12) << np.uint64(56)
    assert f"{following(keys)[0, 6]:016x}" == "0708090a0b000102", "the next eight, cyclic"


def test_candidates_follow_the_banding_curve():
    """The share of pairs that 14 x 8 bands find is 1 - (1 - J^8)^14, for sets of numbers of known similarity."""
    rng = np.random.default_rng(0)
    functions = permutations(14 * 8)
    for j in (0.5, 0.7, 0.8, 0.9):
        shared = round(400 * j)
        rest = (400 - shared) // 2
        caught = 0
        for _ in range(150):
            numbers = rng.integers(0, 2**64, size=shared + 2 * rest, dtype=np.uint64)
            signed = [
                signature(numbers[: shared + rest], functions),
                signature(np.concatenate([numbers[:shared], numbers[shared + rest :]]), functions),
            ]
            a, b = band_keys(np.stack(signed), 14, 8)
            assert np.array_equal(a == b, (signed[0] == signed[1]).reshape(14, 8).all(axis=1))
            caught += bool((a == b).any())
        expected = 1 - (1 - j**8) ** 14
        assert abs(caught / 150 - expected) < 4 * np.sqrt(expected * (1 - expected) / 150) + 0.01


def test_words_shingles_and_pinned_hashes():
    assert len(shingles("One two, three four five six", 5)) == 2
    assert len(shingles("one TWO three", 5)) == 1
    assert np.array_equal(shingles("one two three", 5), shingles("One, two: THREE!", 5))
    assert len(shingles("", 5)) == len(shingles("?!", 5)) == 0
    assert len(shingles("a b a b a b", 2)) == 2
    for text in (
        "snake_case don't x-y 3.5",
        "“Schöne” Grüße—überall…½ ٣٤",
        "漢字かな、混じり İstanbul\u2028ΑΣ ΟΔΟΣ",
        "a\x00b\x7fc\x1cd",
    ):
        assert split_words(text) == [word.encode() for word in re.findall(r"\w+", text.lower())]
    assert split_words("A\u00a0b, C\td", "whitespace") == ["a\u00a0b,".encode(), b"c", b"d"]
    # Pinned, since signatures must stay comparable with those of later versions.
    assert shingles("one two three", 2).tolist() == PINNED_GRAMS
    assert signature(shingles("one two three", 2), permutations(3)).tolist() == PINNED_SIGNATURE
    assert band_keys(np.array([[1, 2, 3, 4]], np.uint32), 2, 2).tolist() == PINNED_KEYS


PINNED_GRAMS = [14802987826439165835, 17931599150886288687]


PINNED_SIGNATURE = [1497102204, 975938226, 2897591941]


PINNED_KEYS = [[8782490742677292569, 11581850119474528618]]
