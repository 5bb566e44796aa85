"""Gopher's rules for web prose (arXiv 2112.11446, appendix A.1.1): quality, and repetition within a document."""

import re
from dataclasses import dataclass

import numpy as np

from data_prep.words import TextView, repeated
from gpt.errors import ConfigError

_PARAGRAPH_BREAK = re.compile(r"\n{2,}")
_BULLETS = ("•", "-", "*")


@dataclass(frozen=True)
class GopherQualityConfig:
    """Section [quality.gopher_quality]; the defaults are the paper's."""

    min_words: int = 50
    max_words: int = 100_000
    min_mean_word_length: float = 3.0
    max_mean_word_length: float = 10.0
    max_symbol_ratio: float = 0.1  # hashes per word, and ellipses per word
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_alphabetic_words: float = 0.8  # share of words with a letter in them
    min_stop_words: int = 2  # different ones
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")

    def __post_init__(self) -> None:
        if self.min_words > self.max_words:
            raise ConfigError(
                f"quality.gopher_quality.min_words = {self.min_words} is above max_words = {self.max_words}"
            )


def quality_reason(view: TextView, config: GopherQualityConfig) -> str | None:
    """Why Gopher's quality rules drop the text, or None. Punctuation counts as words in the ratios, not in the size."""
    real = [word for word in view.words if word[0].isalnum() or word[0] == "_"]
    if len(real) < config.min_words:
        return "too_few_words"
    if len(real) > config.max_words:
        return "too_many_words"
    mean_length = sum(map(len, real)) / max(len(real), 1)
    if mean_length < config.min_mean_word_length:
        return "short_words"
    if mean_length > config.max_mean_word_length:
        return "long_words"
    n_words = max(len(view.words), 1)
    if view.text.count("#") / n_words > config.max_symbol_ratio:
        return "too_many_hashes"
    if (view.text.count("...") + view.text.count("…")) / n_words > config.max_symbol_ratio:
        return "too_many_ellipses"
    n_lines = max(len(view.lines), 1)
    if sum(line.lstrip().startswith(_BULLETS) for line in view.lines) / n_lines > config.max_bullet_lines:
        return "bullet_lines"
    if sum(line.rstrip().endswith(("...", "…")) for line in view.lines) / n_lines > config.max_ellipsis_lines:
        return "ellipsis_lines"
    if sum(any(map(str.isalpha, word)) for word in view.words) / n_words < config.min_alphabetic_words:
        return "few_alphabetic_words"
    if len(set(config.stop_words).intersection(view.words)) < config.min_stop_words:
        return "few_stop_words"
    return None


@dataclass(frozen=True)
class GopherRepetitionConfig:
    """Section [quality.gopher_repetition]; the defaults are table A1. Shares above these drop the document.

    `top_ngram_characters` holds the limits for the most frequent 2-, 3- and 4-gram, `repeated_ngram_characters` those
    for all repeated 5- to 10-grams.
    """

    max_repeated_lines: float = 0.30
    max_repeated_paragraphs: float = 0.30
    max_repeated_line_characters: float = 0.20
    max_repeated_paragraph_characters: float = 0.20
    top_ngram_characters: tuple[float, ...] = (0.20, 0.18, 0.16)
    repeated_ngram_characters: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)


def repetition_reason(view: TextView, config: GopherRepetitionConfig) -> str | None:
    """Why Gopher's repetition rules drop the text, or None."""
    n_characters = max(len(view.text), 1)
    paragraphs = _PARAGRAPH_BREAK.split(view.text.strip())
    n_repeated, repeated_characters = repeated(paragraphs)
    if n_repeated / len(paragraphs) > config.max_repeated_paragraphs:
        return "repeated_paragraphs"
    if repeated_characters / n_characters > config.max_repeated_paragraph_characters:
        return "repeated_paragraph_characters"
    lines = [line for line in view.lines if line]
    n_repeated, repeated_characters = repeated(lines)
    if n_repeated / max(len(lines), 1) > config.max_repeated_lines:
        return "repeated_lines"
    if repeated_characters / n_characters > config.max_repeated_line_characters:
        return "repeated_line_characters"
    for n, limit in enumerate(config.top_ngram_characters, start=2):
        if _top_ngram_characters(view, n) / n_characters > limit:
            return f"top_{n}_gram"
    for n, limit in enumerate(config.repeated_ngram_characters, start=5):
        if _repeated_ngram_characters(view, n) / n_characters > limit:
            return f"repeated_{n}_grams"
    return None


def _top_ngram_characters(view: TextView, n: int) -> int:
    """Characters in all occurrences of the most frequent n-gram (of several, the first in the text)."""
    grams = view.ngrams(n)
    if not len(grams):
        return 0
    _, first, counts = np.unique(grams, return_index=True, return_counts=True)
    most = counts.max()
    return int(view.ngram_lengths(n)[first[counts == most].min()] * most)


def _repeated_ngram_characters(view: TextView, n: int) -> int:
    """Characters in n-grams that came before, each counted once: after a repetition the scan goes on behind it."""
    grams = view.ngrams(n)
    if len(np.unique(grams)) == len(grams):
        return 0
    lengths = view.ngram_lengths(n)
    seen: set[int] = set()
    total = position = 0
    values = grams.tolist()
    while position < len(values):
        if values[position] in seen:
            total += int(lengths[position])
            position += n
        else:
            seen.add(values[position])
            position += 1
    return total
