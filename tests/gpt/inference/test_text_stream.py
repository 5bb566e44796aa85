"""Streamed text: whole characters, stop strings across tokens, and no character that must be taken back."""

import pytest

from gpt.inference.text_stream import GeneratedText
from gpt.tokenizer.tokenizers import Tokenizer, load_tokenizer, train_sentencepiece

TEXT = "The parser reads the source, then 42 of the others follow; for each it prints a line of names.\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "small.model"
    train_sentencepiece(iter([TEXT] * 2), path, vocab_size=330)
    return load_tokenizer(path)


def stream(text: GeneratedText, tokens: list[int]) -> list[str]:
    """Return the text that each token adds, and the rest at the end."""
    shown = []
    for n in range(1, len(tokens) + 1):
        shown.append(text.update(tokens[:n]))
        if text.stopped:
            return shown
    return [*shown, text.finish(tokens)]


def test_a_character_of_several_tokens_waits_for_its_last(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(" a\u20ac\U0001f600b")
    shown = stream(GeneratedText(tokenizer, tokenizer.encode("The")), tokens)
    assert "".join(shown) == " a\u20ac\U0001f600b"
    assert len(tokens) > 5, "the characters must be spelt in bytes"
    assert not any("\ufffd" in part for part in shown)


def test_bytes_that_are_no_character_are_shown_at_the_end(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("a\u20ac")[:-1]
    shown = stream(GeneratedText(tokenizer, tokenizer.encode("The")), tokens)
    assert shown[:-1] == ["a", *[""] * (len(shown) - 2)]
    assert set(shown[-1]) == {"\ufffd"}


@pytest.mark.parametrize(
    ("stops", "wanted"),
    [
        (("reads",), "The parser "),
        (("rce,", "then"), "The parser reads the sou"),
        (("then", "rce,"), "The parser reads the sou"),  # the first in the text counts, not the first in the list
        (("T",), ""),
        (("nowhere", ";!", "sources"), TEXT),
        ((), TEXT),
        ((TEXT,), ""),
        (("s.\n",), TEXT[:-3]),
    ],
)
def test_stop_strings_end_the_text_before_them(tokenizer: Tokenizer, stops: tuple[str, ...], wanted: str) -> None:
    """Also with single-character tokens, so that a stop string spans tokens. No more than the text is ever shown."""
    single = [token for character in TEXT for token in tokenizer.encode(character)]
    for tokens in (tokenizer.encode(TEXT), single):
        text = GeneratedText(tokenizer, tokenizer.encode("It says: "), stops)
        shown = "".join(stream(text, tokens))
        assert shown == text.text == wanted
        assert text.stopped == (wanted != TEXT)


def test_only_the_possible_beginning_of_a_stop_string_is_held_back(tokenizer: Tokenizer) -> None:
    text = GeneratedText(tokenizer, tokenizer.encode("x"), ["sou the", "urban"])
    assert text.update(tokenizer.encode("the sou")) == "the "
    assert text.update(tokenizer.encode("the source")) == "source"
    assert text.update(tokenizer.encode("the source u")) == " "
    assert text.finish(tokenizer.encode("the source u")) == "u"
    assert not text.stopped


def test_a_stop_string_in_the_prompt_stops_nothing(tokenizer: Tokenizer) -> None:
    text = GeneratedText(tokenizer, tokenizer.encode("line of na"), ["names"])
    assert "".join(stream(text, tokenizer.encode("mes and numbers"))) == "mes and numbers"
