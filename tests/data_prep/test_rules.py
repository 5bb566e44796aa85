"""Each quality rule drops the text that it is there for, for its own reason, and lets prose pass."""

import dataclasses
import re

import pytest

from data_prep import c4
from data_prep.c4 import C4Config
from data_prep.documents import Document, read_shard, write_shard
from data_prep.fineweb import FineWebConfig, fineweb_reason
from data_prep.gopher import GopherQualityConfig, GopherRepetitionConfig, quality_reason, repetition_reason
from data_prep.quality import QualityConfig, apply_rules
from data_prep.words import TextView, repeated
from gpt.errors import ConfigError

zstandard = pytest.importorskip("zstandard", reason="the extra 'data' is not installed")

WORDS = re.findall(
    r"\w+",
    """time year people way day man thing woman life child world school state family student group country problem
    hand part place case week company system program question work government number night point home water room
    mother area money story fact month lot right study book eye job word business issue side kind head house""",
)


def sentence(start: int, n: int = 9) -> str:
    """Words in an order that repeats no pair within a few hundred words."""
    step = 1 + start % 7
    return " ".join(WORDS[(start * 5 + i * step) % len(WORDS)] for i in range(n))


def test_prose_passes_every_rule(prose):
    for seed in range(5):
        text = prose(seed, 30)
        assert quality_reason(TextView(text), GopherQualityConfig()) is None
        assert fineweb_reason(TextView(text), FineWebConfig()) is None
        assert c4.clean(text, C4Config()) == (text, None)


@pytest.mark.parametrize(
    ("reason", "make"),
    [
        ("too_few_words", lambda prose: "Only a few words here, and that is all of it."),
        ("too_many_words", lambda prose: "the word and " * 50_000),
        ("short_words", lambda prose: "a b of it x y z be to and " * 20),
        ("long_words", lambda prose: "incomprehensibilities internationalization the of " * 30),
        ("too_many_hashes", lambda prose: prose.replace(" ", " # ", 40)),
        ("too_many_ellipses", lambda prose: prose.replace(" ", " … ", 40)),
        ("bullet_lines", lambda prose: "\n".join(f"• {line}" for line in prose.replace("\n", " ").split(". "))),
        ("ellipsis_lines", lambda prose: "\n".join(f"{line} and more..." for line in prose.split(". "))),
        ("few_alphabetic_words", lambda prose: prose + " 1234 5678" * 60),
        ("few_stop_words", lambda prose: " ".join(sentence(i) for i in range(12))),
    ],
)
def test_gopher_quality(prose, reason, make):
    assert quality_reason(TextView(make(prose(1, 20))), GopherQualityConfig()) == reason


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("repeated_paragraphs", "\n\n".join(["short one", "two"] * 5 + [sentence(i, 40) for i in range(9)])),
        (
            "repeated_paragraph_characters",
            "\n\n".join([sentence(1, 50)] * 2 + [sentence(i, 12) for i in range(3, 9)]),
        ),
        ("repeated_lines", "\n".join(["ab", "cd"] * 5 + [sentence(i, 40) for i in range(12)])),
        ("repeated_line_characters", "\n".join([sentence(1, 50)] * 2 + [sentence(i, 12) for i in range(3, 9)])),
        ("top_2_gram", " ".join(f"ab cd {word}" for word in WORDS)),
        ("top_3_gram", " ".join(f"ab cd ef {word}" for word in WORDS[::2])),
    ],
)
def test_gopher_repetition(reason, text):
    config = GopherRepetitionConfig()
    if reason == "top_3_gram":  # a frequent 3-gram holds frequent 2-grams, so those must be allowed to see it
        config = dataclasses.replace(config, top_ngram_characters=(1.0, 0.18, 0.16))
    assert repetition_reason(TextView(text), config) == reason


@pytest.mark.parametrize("n", range(5, 11))
def test_repeated_ngrams_of_each_length(n):
    phrase = " ".join(WORDS[:n])
    text = " ".join(f"{phrase} {sentence(i + 3, 2)}{i}" for i in range(6))
    only_n = [1.0] * 6
    only_n[n - 5] = 0.15
    config = GopherRepetitionConfig(
        max_repeated_lines=1, top_ngram_characters=(9, 9, 9), repeated_ngram_characters=tuple(only_n)
    )
    assert repetition_reason(TextView(text), config) == f"repeated_{n}_grams"
    unlike = " ".join(f"{word}{i}" for i in range(5) for word in WORDS)
    assert repetition_reason(TextView(unlike), config) is None


def test_ngram_counting_agrees_with_a_plain_count():
    text = "one two three one two four one two three, five"
    view = TextView(text)
    words = ["one", "two", "three", "one", "two", "four", "one", "two", "three", ",", "five"]
    assert view.words == words
    for n in (1, 2, 3, 11, 12):
        grams = [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
        numbers = view.ngrams(n).tolist()
        assert len(numbers) == len(grams)
        assert len(set(zip(numbers, grams, strict=True))) == len(set(grams)) == len(set(numbers))
        assert view.ngram_lengths(n).tolist() == list(map(len, grams))
    assert repeated(["a", "bb", "a", "bb", "bb"]) == (3, 5)


def test_c4_lines_and_pages():
    good = ["This line ends like a sentence should.", "Is this a question that stays here?", 'He said "so be it."']
    lines = [*good, "No end of a sentence here", "Too short.", "Please enable JavaScript to see this page."]
    lines += ["We use cookies to make this better.", "It trails off and on...", "x" * 1001 + " is a long word."]
    text = "\n".join([*lines, "A citation[12] and another[citation needed] go away."])
    cleaned, reason = c4.clean(text, C4Config(min_sentences=3))
    assert reason is None
    assert cleaned.split("\n") == [*good, "A citation and another go away."]
    assert c4.clean(text, C4Config())[1] == "too_few_sentences"
    long = "\n".join(good * 3)
    assert c4.clean(long + "\nfunction f { return true", C4Config())[1] is None, "the line goes, so its bracket does"
    assert c4.clean(long + "\nIt is written as { here.", C4Config())[1] == "curly_bracket"
    assert c4.clean(long + "\nLorem ipsum dolor sit amet.", C4Config())[1] == "lorem_ipsum"
    assert c4.clean(long + "\nit has no end", C4Config(terminal_punctuation=False))[0].endswith("no end")


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("no_lines", " \n "),
        ("few_punctuated_lines", "\n".join(f"{sentence(i)} without an end {i}" for i in range(10))),
        ("short_lines", "\n".join(f"Short one {i}." for i in range(10))),
        ("repeated_line_characters", "\n".join([sentence(1) + "."] * 2 + [f"{sentence(i)}." for i in range(2, 20)])),
        ("many_lines", "\n\n\n\n".join(f"Incomprehensibilities internationalization {i}." for i in range(10))),
    ],
)
def test_fineweb(reason, text):
    assert fineweb_reason(TextView(text), FineWebConfig()) == reason


def test_the_stage_counts_each_rule_set_in_the_recipes_order(tmp_path, prose):
    with write_shard(tmp_path / "in") as write:
        write(Document("good", prose(3, 30)))
        write(Document("short", "Just this."))
        write(Document("brackets", prose(4, 30) + "\nAnd then they wrote { in the end."))
        write(Document("menu", prose(5, 30) + "\nHome\nAbout"))
    config = QualityConfig(rules=("c4", "gopher_quality"))
    result = apply_rules(config, (tmp_path / "in",), (tmp_path / "out", tmp_path / "trace"))
    kept = {document.id: document.text for document in read_shard(tmp_path / "out")}
    assert kept == {"good": prose(3, 30), "menu": prose(5, 30)}, "C4 takes the menu's lines out of the text"
    first, second = result.counts
    assert (first.step, first.documents_in, first.dropped) == ("c4", 4, {"too_few_sentences": 1, "curly_bracket": 1})
    assert (second.step, second.documents_in, second.documents_out) == ("gopher_quality", 2, 2)
    assert second.bytes_in == first.bytes_out < first.bytes_in


def test_settings_that_make_no_sense():
    with pytest.raises(ConfigError, match="names a rule set twice"):
        QualityConfig(rules=("c4", "c4"))
    with pytest.raises(ConfigError, match=r"min_words = 9 is above max_words = 3"):
        GopherQualityConfig(min_words=9, max_words=3)
