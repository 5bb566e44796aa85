"""Each of Gopher's rules drops the texts that it was made for."""

import dataclasses

import pytest
from rule_texts import WORDS, sentence

from data_prep.documents.words import TextView
from data_prep.filters.gopher import GopherQualityConfig, GopherRepetitionConfig, quality_reason, repetition_reason
from gpt.errors import ConfigError


def _name(found: tuple[str, float] | None) -> str:
    return found[0] if found else "kept"


@pytest.mark.parametrize(
    ("reason", "make"),
    [
        ("gopher_short_doc", lambda prose: "Only a few words here, and that is all of it."),
        ("gopher_long_doc", lambda prose: "the word and " * 50_000),
        ("gopher_below_avg_threshold", lambda prose: "a b of it x y z be to and " * 20),
        ("gopher_above_avg_threshold", lambda prose: "incomprehensibilities internationalization the of " * 30),
        ("gopher_too_many_hashes", lambda prose: prose.replace(" ", " # ", 40)),
        ("gopher_too_many_ellipsis", lambda prose: prose.replace(" ", " … ", 40)),
        (
            "gopher_too_many_bullets",
            lambda prose: "\n".join(f"• {line}" for line in prose.replace("\n", " ").split(". ")),
        ),
        ("gopher_too_many_end_ellipsis", lambda prose: "\n".join(f"{line} and more..." for line in prose.split(". "))),
        ("gopher_below_alpha_threshold", lambda prose: prose + " 1234 5678" * 60),
        ("gopher_too_few_stop_words", lambda prose: " ".join(sentence(i) for i in range(12))),
    ],
)
def test_each_quality_rule_drops_its_texts(prose, reason, make):
    assert _name(quality_reason(TextView(make(prose(1, 20))), GopherQualityConfig())) == reason


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("dup_para_frac", "\n\n".join(["short one", "two"] * 5 + [sentence(i, 40) for i in range(9)])),
        (
            "dup_para_char_frac",
            "\n\n".join([sentence(1, 50)] * 2 + [sentence(i, 12) for i in range(3, 9)]),
        ),
        ("dup_line_frac", "\n".join(["ab", "cd"] * 5 + [sentence(i, 40) for i in range(12)])),
        ("dup_line_char_frac", "\n".join([sentence(1, 50)] * 2 + [sentence(i, 12) for i in range(3, 9)])),
        ("top_2_gram", " ".join(f"ab cd {word}" for word in WORDS)),
        ("top_3_gram", " ".join(f"ab cd ef {word}" for word in WORDS[::2])),
    ],
)
def test_each_repetition_rule_drops_its_texts(reason, text):
    config = GopherRepetitionConfig()
    if reason == "top_3_gram":  # a frequent 3-gram has frequent 2-grams, so turn that rule off
        config = dataclasses.replace(config, top_n_grams=((3, 0.18), (4, 0.16)))
    assert _name(repetition_reason(TextView(text), config)) == reason


@pytest.mark.parametrize("n", range(5, 11))
def test_repeated_ngrams_of_each_length(n):
    phrase = " ".join(WORDS[:n])
    text = " ".join(f"{phrase} {sentence(i + 3, 2)}{i}" for i in range(6))
    config = GopherRepetitionConfig(dup_line_frac=0, top_n_grams=(), dup_n_grams=((n, 0.15),))
    assert _name(repetition_reason(TextView(text), config)) == f"duplicated_{n}_n_grams"
    unlike = " ".join(f"{word}{i}" for i in range(5) for word in WORDS)
    assert repetition_reason(TextView(unlike), config) is None


def test_invalid_settings_are_errors():
    with pytest.raises(
        ConfigError, match=r"min_doc_words = 9 is invalid: must be at most max_doc_words = 3\. max_doc_words = 0 sets"
    ):
        GopherQualityConfig(min_doc_words=9, max_doc_words=3)
    with pytest.raises(ConfigError, match=r"dup_n_grams: the entry \[5.5, 0.1\] is invalid: must be \[n, share\]"):
        GopherRepetitionConfig(dup_n_grams=((5.5, 0.1),))
