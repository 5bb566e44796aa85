"""Words and grams are those of the GPT-3 paper, and different grams have different numbers."""

import sys
import unicodedata

import numpy as np
from paper_grams import grams, kind

from data_prep.decontamination import ngrams
from data_prep.decontamination.ngrams import GramIndex, find_in_each, find_known, join, plain, scan_grams, scan_words


def test_words_match_the_paper():
    """The published 13-grams of openai/gpt-3 (overlap_frequency.md) show how punctuation was treated."""
    assert plain("I couldn't save your world; (I COULDN'T) — save any of them.") == (
        "i couldn t save your world i couldn t save any of them"
    )
    assert plain("the 36°30′ parallel, 10% of ICAM-1 & $5_x") == "the 36 30 parallel 10 of icam 1 5 x"
    assert plain("na\u00adïve co\u200boperation ΟΔΟΣ İstanbul ❤️ हिन्दी") == "naïve cooperation οδος i̇stanbul हिन्दी"
    assert plain(" …—\n") == plain("") == ""
    same = ["ΟΔΟΣ x", "οδος X", "οδοσ, x"]
    assert len({tuple(join(scan_grams(text, (2,))).numbers.tolist()) for text in same}) == 1
    spans = join(scan_words("  Don't, stop\u00ad."))
    assert [(a, b) for a, b in zip(spans.starts.tolist(), spans.ends.tolist(), strict=True)] == [
        (2, 5),
        (6, 7),
        (9, 13),
    ]
    planes = [plane for plane in range(17) if plane not in (0, 1, 2, 3, 14)]  # which the table skips
    assert {unicodedata.category(chr(c)) for p in planes for c in range(p << 16, (p + 1) << 16)} <= {"Cn", "Co"}
    assert all(ngrams._kind(chr(c)) == {"separator": 0, "invisible": 1, "letter": 2}[kind(chr(c))] for c in range(4096))


def test_words_longer_than_a_block_and_many_texts_at_once(monkeypatch):
    monkeypatch.setattr(ngrams, "BLOCK", 8)
    assert len(join(scan_words("abc " + "x" * 20 + " d"))) == 5  # the long word counts as three
    texts = ["a b c", "c d", "", "a", "b", "c a b"]
    several = [(a, b) for s in scan_grams("ab cd ef gh ij k lm", (2, 4)) for a, b in zip(s.starts, s.ends, strict=True)]
    assert sorted(several) == sorted((a, b) for n in (2, 4) for _, a, b in grams("ab cd ef gh ij k lm", n)), "each once"
    index = GramIndex.of(np.unique(join(scan_grams("a b c", (2,))).numbers))
    rows, found = find_in_each(texts, index, (2,))
    assert [(r, texts[r][a:b]) for r, a, b in zip(rows, found.starts, found.ends, strict=True)] == [
        (0, "a b"),
        (0, "b c"),
        (5, "a b"),
    ], "'a' and 'b' are two texts"
    empty = GramIndex.of(np.zeros(0, np.uint64))
    assert len(find_known("a b c", empty, (2,))) == len(find_known("", index, (2,))) == 0


def test_numbers_of_different_grams_differ():
    """No two pairs of words share a number, in both orders, with repetitions and at several lengths."""
    names = [f"{a}{b}" for a in "abcdefgh" for b in ["", "a", "b", "ab", "ba", "é", "zz", "zzz"]]
    texts = {plain(f"{a} {b}{c}") for a in names for b in names for c in ("", " x", f" {a}", f" {b} {a}")}
    numbers = {int(join(scan_grams(text, (len(text.split()),))).numbers[0]) for text in texts}
    assert len(numbers) == len(texts) > 10_000


def test_the_table_of_characters_is_small():
    assert sys.getsizeof(ngrams._characters()) < 10 << 20
