"""Split text into words and count sentences, by spaCy's rules for English."""

import pytest

from data_prep.documents.word_split import count_sentences, split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "Don't go, he'd said; it's John's (e.g. at 5km).",
            "Do n't go , he 'd said ; it 's John 's ( e.g. at 5 km ) .",
        ),
        ("We cannot meet Mr. J. Brown of the U.S. in NATO.", "We can not meet Mr. J. Brown of the U.S. in NATO ."),
        ("well-known 1990-2000 and/or yes/no, x=1 A,B", "well - known 1990 - 2000 and/or yes / no , x=1 A , B"),
        ('He said: "So... no!" and left…', 'He said : " So ... no ! " and left …'),
        ("See https://a.org/b?c=d, me@a.org. $5 -3 +4 50%", "See https://a.org/b?c=d , me@a.org . $ 5 -3 +4 50 %"),
        ("end.Next is os.path; __init__ 3.14 3-tuple", "end . Next is os.path ; _ _ init _ _ 3.14 3 - tuple"),
        ("「北京」是首都。人口众多！", "「 北京」是首都。人口众多 ！"),
        ("ok 👍🏽 “quoted” ¿Qué?", "ok 👍 🏽 “ quoted ” ¿ Qué ?"),
    ],
)
def test_words_equal_those_of_spacys_english_rules(text, words):  # recorded from spaCy 3.8
    assert split_words(text) == words.split()


def test_splitting_loses_nothing_and_stays_linear():
    for text in ("(" * 200_000, "!)" * 100_000, "a." * 100_000, "'s" * 100_000, "a@" * 100_000, "A.b,c-" * 50_000):
        assert "".join(split_words(text)) == text


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("No end here", 1),
        ("One. Two! Three? Four", 4),
        ('"Go," said Mr. Brown of the U.S. army. "Now."', 2),
        ("What?! No... well", 2),
        ("", 1),
    ],
)
def test_sentences_are_counted(line, count):
    assert count_sentences(split_words(line)) == count
