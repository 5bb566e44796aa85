"""Apply FineWeb's own rules (arXiv 2406.17557, section 3.6), which drop lists and menus by the shapes of their lines.

Names, order and counting are those of datatrove's FineWebQualityFilter; docs/guides/data/rules.md says where the paper
differs.
"""

from dataclasses import dataclass

from data_prep.documents.word_split import SENTENCE_ENDS
from data_prep.documents.words import TextView, repeated


@dataclass(frozen=True)
class FineWebConfig:
    """Section [quality.fineweb]; the defaults are those of the published code. Blank lines do not count as lines."""

    line_punct_thr: float = 0.12
    """Least share of lines that end in one of `stop_chars`."""
    line_punct_exclude_zero: bool = False
    """Keep pages without any such line."""
    stop_chars: tuple[str, ...] = ()
    """Ends of a sentence. Empty: all of Unicode's sentence terminators."""
    short_line_thr: float = 0.67
    """Greatest share of short lines."""
    short_line_length: int = 30
    """Most characters of a short line."""
    char_duplicates_ratio: float = 0.01
    """Greatest share of characters, line ends excluded, in repeated lines. The paper says 0.1."""
    new_line_ratio: float = 0.3
    """Most line ends per word."""


def fineweb_reason(view: TextView, config: FineWebConfig) -> tuple[str, float] | None:
    """Return the rule that drops the text and the value that it measured, or None to keep the text."""
    lines = [line for line in view.text.split("\n") if line.strip()]
    if not lines:
        return "empty", 0
    if config.stop_chars:
        n_ends = sum(line.endswith(config.stop_chars) for line in lines)
    else:
        n_ends = sum(line[-1] in SENTENCE_ENDS for line in lines)
    share = n_ends / len(lines)
    if share < config.line_punct_thr and not (share == 0 and config.line_punct_exclude_zero):
        return "line_punct_ratio", share
    share = sum(len(line) <= config.short_line_length for line in lines) / len(lines)
    if share > config.short_line_thr:
        return "short_line_ratio", share
    n_line_ends = view.text.count("\n")
    share = repeated(lines)[1] / (len(view.text) - n_line_ends)
    if share > config.char_duplicates_ratio:
        return "char_dup_ratio", share
    share = n_line_ends / max(len(view.words), 1)
    if share > config.new_line_ratio:
        return "list_ratio", share
    return None
