"""A small corpus, awkward texts, and a sentencepiece vocabulary trained on the corpus."""

from pathlib import Path

import pytest

from gpt.tokenizer.tokenizers import train_sentencepiece

CORPUS = [
    "def add(a, b):\n    return a + b  # 12345\n\n\tx = add(1, 2)\r\n",
    "The naïve reader of 日本語 and ελληνικά sees words, words and more words.",
    "Numbers 2026 and 1969 are split; the ▁ mark and ▅ stay what they are.",
    "<|endoftext|> is a text like any other \x00 here.",
] * 30
AWKWARD = [
    "",
    " ",
    "  a",
    "a  ",
    "\n\n \t\r\n",
    "a\x00b",
    "▁",
    "a▁▁ b ▁",
    "<|endoftext|>",
    "<0x41>",
    "<unk>",
    "🎉\ufeff\u2028",
]


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    """Texts to train on."""
    return CORPUS


@pytest.fixture(scope="session")
def awkward() -> list[str]:
    """Texts that are easily encoded wrongly."""
    return AWKWARD


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentencepiece vocabulary of 400 pieces."""
    path = tmp_path_factory.mktemp("tokenizer") / "t.model"
    train_sentencepiece(iter(CORPUS), path, vocab_size=400)
    return path
