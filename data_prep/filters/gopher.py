"""Apply Gopher's rules for web prose (arXiv 2112.11446, appendix A.1.1): quality, and repetition within a document.

Names, order and counting are those of datatrove's GopherQualityFilter and GopherRepetitionFilter, which made FineWeb.
docs/guides/data/rules.md says where the paper is silent or differs.
"""

from dataclasses import dataclass

import numpy as np

from data_prep.documents.word_split import SYMBOLS
from data_prep.documents.words import Integers, TextView, later_copies, repeated
from gpt.errors import ConfigError

Reason = tuple[str, float]  # the rule that drops a text, and the value that it measured
NGramLimits = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class GopherQualityConfig:
    """Section [quality.gopher_quality]; the defaults are the paper's. A threshold of 0 turns its rule off."""

    min_doc_words: int = 50
    """Fewest words, without those that are only punctuation."""
    max_doc_words: int = 100_000
    """Most words, without those that are only punctuation."""
    min_avg_word_length: float = 3.0
    """Least mean length of these words in characters."""
    max_avg_word_length: float = 10.0
    """Greatest mean length of these words in characters."""
    max_symbol_word_ratio: float = 0.1
    """Most hashes, and most ellipses, per word. Punctuation counts as words."""
    max_bullet_lines_ratio: float = 0.9
    """Greatest share of lines, empty ones included, that begin with one of `bullets`."""
    max_ellipsis_lines_ratio: float = 0.3
    """Greatest share of lines, empty ones included, that end in an ellipsis."""
    min_alpha_words_ratio: float = 0.8
    """Least share of words with a letter (datatrove: max_non_alpha_words_ratio). Punctuation counts as words."""
    min_stop_words: int = 2
    """Number of different words of `stop_words` that must occur."""
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    """Frequent words of the language."""
    bullets: tuple[str, ...] = ("•", "-")
    """Characters that begin an item of a list."""

    def __post_init__(self) -> None:
        for low, high in (("min_doc_words", "max_doc_words"), ("min_avg_word_length", "max_avg_word_length")):
            if getattr(self, high) and getattr(self, low) > getattr(self, high):
                raise ConfigError(
                    f"quality.gopher_quality.{low} = {getattr(self, low)} is invalid: must be at most {high} = "
                    f"{getattr(self, high)}. {high} = 0 sets no limit"
                )


def quality_reason(view: TextView, config: GopherQualityConfig) -> Reason | None:
    """Return the quality rule that drops the text, or None to keep the text."""
    return _size_reason(view, config) or _symbol_reason(view, config) or _word_reason(view, config)


def _size_reason(view: TextView, config: GopherQualityConfig) -> Reason | None:
    is_word = np.fromiter((not _is_symbol(word) for word in view.vocabulary), dtype=bool, count=len(view.vocabulary))
    counts = view.word_counts[is_word]
    n_words = int(counts.sum())
    if config.min_doc_words and n_words < config.min_doc_words:
        return "gopher_short_doc", n_words
    if config.max_doc_words and n_words > config.max_doc_words:
        return "gopher_long_doc", n_words
    average = int((counts * view.vocabulary_lengths[is_word]).sum()) / max(n_words, 1)
    if config.min_avg_word_length and n_words and average < config.min_avg_word_length:
        return "gopher_below_avg_threshold", average
    if config.max_avg_word_length and average > config.max_avg_word_length:
        return "gopher_above_avg_threshold", average
    return None


def _is_symbol(word: str) -> bool:
    return not (word.isascii() and word.isalnum()) and SYMBOLS.issuperset(word)


def _symbol_reason(view: TextView, config: GopherQualityConfig) -> Reason | None:
    text, n_words, lines = view.text, max(len(view.words), 1), view.text.splitlines() or [""]
    if config.max_symbol_word_ratio:
        hashes = text.count("#") / n_words
        if hashes > config.max_symbol_word_ratio:
            return "gopher_too_many_hashes", hashes
        ellipses = (text.count("...") + text.count("…")) / n_words
        if ellipses > config.max_symbol_word_ratio:
            return "gopher_too_many_ellipsis", ellipses
    if config.max_bullet_lines_ratio:
        bullets = sum(line.lstrip().startswith(config.bullets) for line in lines) / len(lines)
        if bullets > config.max_bullet_lines_ratio:
            return "gopher_too_many_bullets", bullets
    if config.max_ellipsis_lines_ratio:
        ends = sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines)
        if ends > config.max_ellipsis_lines_ratio:
            return "gopher_too_many_end_ellipsis", ends
    return None


def _word_reason(view: TextView, config: GopherQualityConfig) -> Reason | None:
    if config.min_alpha_words_ratio:
        has_letter = (word.isalpha() or any(map(str.isalpha, word)) for word in view.vocabulary)
        letters = np.fromiter(has_letter, dtype=bool, count=len(view.vocabulary))
        share = int(view.word_counts[letters].sum()) / max(len(view.words), 1)
        if share < config.min_alpha_words_ratio:
            return "gopher_below_alpha_threshold", share
    n_stop_words = sum(word in view.vocabulary for word in set(config.stop_words))
    if n_stop_words < config.min_stop_words:
        return "gopher_too_few_stop_words", n_stop_words
    return None


@dataclass(frozen=True)
class GopherRepetitionConfig:
    """Section [quality.gopher_repetition]; the defaults are the paper's table A1. A threshold of 0 turns a rule off."""

    dup_line_frac: float = 0.3
    """Greatest share of lines that repeat an earlier one."""
    dup_para_frac: float = 0.3
    """Greatest share of paragraphs that repeat an earlier one."""
    dup_line_char_frac: float = 0.2
    """Greatest share of the text's characters in repeated lines."""
    dup_para_char_frac: float = 0.2
    """Greatest share of the text's characters in repeated paragraphs."""
    top_n_grams: NGramLimits = ((2, 0.2), (3, 0.18), (4, 0.16))
    """[[n, share], ...]: greatest share of characters in all occurrences of the most frequent n-gram of words."""
    dup_n_grams: NGramLimits = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.1))
    """[[n, share], ...]: greatest share of characters in n-grams that repeat an earlier one. Each character counts
    once."""

    def __post_init__(self) -> None:
        for name in ("top_n_grams", "dup_n_grams"):
            for pair in getattr(self, name):
                if len(pair) != 2 or pair[0] < 1 or pair[0] != int(pair[0]):
                    raise ConfigError(
                        f"quality.gopher_repetition.{name}: the entry {list(pair)} is invalid: must be [n, share], "
                        "for example [5, 0.15]"
                    )


def repetition_reason(view: TextView, config: GopherRepetitionConfig) -> Reason | None:
    """Return the repetition rule that drops the text, or None to keep the text."""
    if not view.text:
        return "empty", 0
    return _line_reason(view, config) or _top_reason(view, config.top_n_grams) or _copy_reason(view, config.dup_n_grams)


def _line_reason(view: TextView, config: GopherRepetitionConfig) -> Reason | None:
    text = view.text
    paragraphs = ("para", _paragraphs(text), config.dup_para_frac, config.dup_para_char_frac)
    lines = ("line", _lines(text), config.dup_line_frac, config.dup_line_char_frac)
    for name, parts, limit, character_limit in (paragraphs, lines):
        n_repeated, n_characters = repeated(parts)
        if limit and n_repeated / len(parts) > limit:
            return f"dup_{name}_frac", n_repeated / len(parts)
        if character_limit and n_characters / len(text) > character_limit:
            return f"dup_{name}_char_frac", n_characters / len(text)
    return None


def _paragraphs(text: str) -> list[str]:
    """Split the text at two or more line ends."""
    parts = (part.lstrip("\n") for part in text.strip().split("\n\n"))
    return [part for part in parts if part] or [""]


def _lines(text: str) -> list[str]:
    """Split the text at one or more line ends; those at its start or end leave an empty line there."""
    parts = text.split("\n")
    return [part for i, part in enumerate(parts) if part or i in (0, len(parts) - 1)]


def _top_reason(view: TextView, limits: NGramLimits) -> Reason | None:
    """Check the most frequent n-gram; on a tie, the first in the text. Its characters include a space between words.

    The counts of each n-gram's rarest word bound its own count. The bound decides quickly for nearly all texts.
    """
    for n, limit in ((int(n), limit) for n, limit in sorted(limits)):
        lengths = view.ngram_lengths(n) + (n - 1)
        bounds = view.rarest_word_counts(n) * lengths
        if not len(bounds) or int(bounds.max()) / len(view.text) <= limit:
            continue
        grams = view.ngrams(n, np.arange(len(lengths)))
        _, first, counts = np.unique(grams, return_index=True, return_counts=True)
        count = int(counts.max())
        share = int(lengths[first[counts == count].min()]) * count / len(view.text)
        if share > limit:
            return f"top_{n}_gram", share
    return None


def _copy_reason(view: TextView, limits: NGramLimits) -> Reason | None:
    """Check the n-grams that repeat an earlier one.

    An upper bound settles all but the worst texts: the characters of all words in repeated n-grams. It holds for every
    larger n too.
    """
    bound = None
    for n, limit in ((int(n), limit) for n, limit in sorted(limits)):
        if bound is not None and bound <= limit:
            continue
        possible = np.flatnonzero(view.rarest_word_counts(n) > 1)
        copies = possible[later_copies(view.ngrams(n, possible))]
        bound = _covered_characters(view, copies, n) / len(view.text)
        if bound > limit:
            share = _repeated_characters(view, n) / len(view.text)
            if share > limit:
                return f"duplicated_{n}_n_grams", share
    return None


def _covered_characters(view: TextView, starts: Integers, n: int) -> int:
    """Count the characters of the words in the n-grams at `starts`."""
    n_words = len(view.words)
    changes = np.bincount(starts, minlength=n_words + 1) - np.bincount(starts + n, minlength=n_words + 1)
    return int(np.diff(view.word_ends)[np.cumsum(changes)[:-1] > 0].sum())


def _repeated_characters(view: TextView, n: int) -> int:
    """Count the characters in repeated n-grams, each once: after a repetition the scan continues behind it."""
    lengths = view.ngram_lengths(n).tolist()
    values = view.ngrams(n, np.arange(len(lengths))).tolist()
    seen: set[int] = set()
    total = position = 0
    while position < len(values):
        if values[position] in seen:
            total += lengths[position]
            position += n
        else:
            seen.add(values[position])
            position += 1
    return total
