"""FineWeb's own rules (arXiv 2406.17557, section 3.5): line shapes that tell lists and menus from prose."""

from dataclasses import dataclass

from data_prep.words import TextView, repeated

_TERMINAL = (".", "!", "?", '"', "'", "”", "’")


@dataclass(frozen=True)
class FineWebConfig:
    """Section [quality.fineweb]; the defaults are the paper's. Empty lines are not counted as lines."""

    min_punctuated_lines: float = 0.12  # share of lines that end like a sentence; at or below it the page goes
    max_short_lines: float = 0.67  # share of lines of at most short_line_characters
    short_line_characters: int = 30
    max_repeated_line_characters: float = 0.01
    max_lines_per_word: float = 0.3


def fineweb_reason(view: TextView, config: FineWebConfig) -> str | None:
    """Why FineWeb's rules drop the text, or None."""
    lines = [line for line in view.lines if line.strip()]
    if not lines:
        return "no_lines"
    if sum(line.rstrip().endswith(_TERMINAL) for line in lines) / len(lines) <= config.min_punctuated_lines:
        return "few_punctuated_lines"
    if sum(len(line) <= config.short_line_characters for line in lines) / len(lines) >= config.max_short_lines:
        return "short_lines"
    if repeated(lines)[1] / sum(map(len, lines)) >= config.max_repeated_line_characters:
        return "repeated_line_characters"
    if view.text.count("\n") / max(len(view.words), 1) > config.max_lines_per_word:
        return "many_lines"
    return None
