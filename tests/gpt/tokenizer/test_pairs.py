"""Byte pairs by tiktoken. test_byte_pair.py and test_byte_level.py compare the ids of real vocabularies."""

import pytest

from gpt.tokenizer.long_texts import LONG, PART
from gpt.tokenizer.pairs import WORDS, WORDS_AND_DIGITS, BytePairs

pytest.importorskip("tiktoken", reason="the extra 'data' is not installed")
RANKS = {bytes([byte]): byte for byte in range(256)} | {b"12": 256, b"ab": 257, b"  ": 258}


@pytest.mark.parametrize(
    ("words", "pieces"), [(WORDS, [" ", " ", "12", "ab"]), (WORDS_AND_DIGITS, ["  ", "1", "2", "ab"])]
)
def test_digits_are_split_off_by_one_rule_only(words: str, pieces: list[str]) -> None:
    pairs = BytePairs("x", RANKS, words=words)
    assert [pairs.model.decode([i]) for i in pairs.encode("  12ab")] == pieces


def test_lists_and_arrays_are_equal_also_of_long_texts_with_half_of_a_surrogate_pair() -> None:
    pairs = BytePairs("x", RANKS, words=WORDS)
    for text in ("", "ab\ud800", "ab 12\n" * LONG + "\ud800"):
        ids = pairs.encode(text)
        assert pairs.encode_array(text).tolist() == ids
        assert pairs.model.decode(ids) == text.replace("\ud800", "\ufffd")


@pytest.mark.parametrize("words", [WORDS, WORDS_AND_DIGITS])
@pytest.mark.parametrize("after", ["5", "\u0663", "a", "!"])
def test_a_long_run_of_blanks_is_cut_where_its_piece_ends(words: str, after: str) -> None:
    """With digits split off, the last blank before a digit belongs to the run."""
    pairs = BytePairs("x", RANKS, words=words)
    text = "ab" + " " * PART + after + "ab " * PART
    assert pairs.encode(text) == pairs.model.encode_ordinary(text)
