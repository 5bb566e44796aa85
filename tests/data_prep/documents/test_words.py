"""View a text as words and n-grams."""

import numpy as np

from data_prep.documents.words import TextView, later_copies, mix, repeated


def test_words_are_numbered_and_measured():
    view = TextView("to be or not to be")
    assert view.words == ["to", "be", "or", "not", "to", "be"]
    assert view.word_numbers.tolist() == [0, 1, 2, 3, 0, 1]
    assert view.word_counts.tolist() == [2, 2, 1, 1]
    assert view.word_ends.tolist() == [0, 2, 4, 6, 9, 11, 13]
    assert view.ngram_lengths(2).tolist() == [4, 4, 5, 5, 4]
    assert view.rarest_word_counts(2).tolist() == [2, 1, 1, 1, 2]
    assert TextView("given", ["other", "words"]).words == ["other", "words"]


def test_equal_ngrams_have_equal_numbers():
    view = TextView("a b c a b d a b c")
    grams = view.ngrams(3, np.arange(7))
    assert grams[0] == grams[6]
    assert len(set(grams.tolist())) == 6
    assert later_copies(grams).tolist() == [6]
    assert repeated(["x", "yy", "x", "yy", "x"]) == (3, 4)
    assert repeated(["x", "y"]) == (0, 0)


def test_mixing_is_one_to_one():
    values = np.arange(100_000, dtype=np.uint64)
    assert len(np.unique(mix(values))) == len(values)


def test_ngram_counting_agrees_with_a_plain_count():
    text = "one two three one two four one two three, five"
    view = TextView(text)
    words = ["one", "two", "three", "one", "two", "four", "one", "two", "three", ",", "five"]
    assert view.words == words
    for n in (1, 2, 3, 11, 12):
        grams = [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
        starts = np.arange(len(grams))
        numbers = view.ngrams(n, starts).tolist()
        assert len(numbers) == len(grams)
        assert len(set(zip(numbers, grams, strict=True))) == len(set(grams)) == len(set(numbers))
        assert view.ngram_lengths(n).tolist() == [len(gram.replace(" ", "")) for gram in grams]
        copies = later_copies(view.ngrams(n, starts)).tolist()
        assert copies == [i for i, gram in enumerate(grams) if gram in grams[:i]]
        rarest = [min(map(words.count, words[i : i + n])) for i in range(len(grams))]
        assert view.rarest_word_counts(n).tolist() == rarest
    assert repeated(["a", "bb", "a", "bb", "bb"]) == (3, 5)
