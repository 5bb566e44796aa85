"""Apply C4's cleaning rules (arXiv 1910.10683, section 2.2), which drop lines and then whole pages.

Names, order and counting are those of datatrove's C4QualityFilter. It follows C4's own code (c4_utils.py of
TensorFlow Datasets) with other thresholds; docs/guides/data/rules.md lists the differences. C4's list of
bad words is not applied.
"""

import re
from dataclasses import dataclass

from data_prep.documents.word_split import count_sentences, split_words
from data_prep.documents.words import TextView

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")


@dataclass(frozen=True)
class C4Config:
    """Section [quality.c4]. A threshold below 1 turns its rule off.

    Whitespace separates words. A rule that drops a page looks at the lines that are kept.
    """

    remove_citations: bool = True
    """Remove [12], [edit] and [citation needed]."""
    filter_no_terminal_punct: bool = True
    """Remove lines that do not end in one of `end_punctuation`. FineWeb turns it off."""
    end_punctuation: tuple[str, ...] = (".", "?", "!", '"', "'")
    """Ends of a sentence."""
    min_num_sentences: int = 5
    """Drop pages with fewer sentences."""
    min_words_per_line: int = 3
    """Remove lines with fewer words."""
    max_word_length: int = 1000
    """Remove lines with a word of more characters."""
    filter_lorem_ipsum: bool = True
    """Drop pages with "lorem ipsum"."""
    filter_javascript: bool = True
    """Remove lines with "javascript"."""
    filter_curly_bracket: bool = True
    """Drop pages with "{"."""
    filter_policy: bool = True
    """Remove lines with one of `policy_substrings`."""
    policy_substrings: tuple[str, ...] = (
        "terms of use",
        "privacy policy",
        "cookie policy",
        "uses cookies",
        "use of cookies",
        "use cookies",
    )
    """Marks of lines about policies."""


def clean(view: TextView, config: C4Config) -> tuple[TextView, tuple[str, float] | None]:
    """Return (the text with only the lines that C4 keeps, None), or (the text, (drop reason, measured value))."""
    text = view.text
    if config.remove_citations and "[" in text:
        lines = [_without_citations(line) for line in text.splitlines() if _words_fit(line, config)]
        text = "\n".join(lines)
    else:
        lines = [line.strip() for line in text.splitlines() if _words_fit(line, config)]
    phrases = _find_phrases(text, config)  # few pages have any
    kept: list[str] = []
    for line in lines:
        if not _has_end_punctuation(line, config):
            continue
        if phrases:
            lowered = line.lower()
            reason = next((reason for phrase, reason in phrases if phrase in lowered), None)
            if reason:
                return view, (reason, len(kept))
            if reason is not None:  # "": drop only the line
                continue
        kept.append(line)
    n_sentences = _count_sentences(kept, limit=config.min_num_sentences)
    if n_sentences < config.min_num_sentences:
        return view, ("too_few_sentences", n_sentences)
    text = "\n".join(kept).strip()
    if not text:
        return view, ("empty", 0)
    return view if text == view.text else TextView(text), None


def _find_phrases(text: str, config: C4Config) -> list[tuple[str, str]]:
    """Return the rules' phrases that occur in the text, as (phrase, reason), in the order in which a line is searched.

    The reason is the page's drop reason, or "" if the phrase drops only its line.
    """
    lowered = text.lower()
    rules = (
        (config.filter_lorem_ipsum, ("lorem ipsum",), "lorem_ipsum"),
        (config.filter_javascript, ("javascript",), ""),
        (config.filter_curly_bracket, ("{",), "curly_bracket"),
        (config.filter_policy, config.policy_substrings, ""),
    )
    return [(phrase, reason) for on, phrases, reason in rules if on for phrase in phrases if phrase in lowered]


def _without_citations(line: str) -> str:
    return _CITATION.sub("", line.strip()) if "[" in line else line.strip()


def _words_fit(line: str, config: C4Config) -> bool:
    """Return whether the line has enough words and none too long; citations still count as words."""
    min_words, max_length = max(config.min_words_per_line, 0), config.max_word_length
    if len(line.split(None, min_words)) < min_words:
        return False
    return max_length < 1 or len(line) <= max_length or all(len(word) <= max_length for word in line.split())


def _has_end_punctuation(line: str, config: C4Config) -> bool:
    if not config.filter_no_terminal_punct:
        return True
    return line.endswith(config.end_punctuation) and not line.endswith("...")


def _count_sentences(lines: list[str], *, limit: int) -> int:
    """Count the sentences in the lines; stop after the line that reaches `limit`."""
    total = 0
    for line in lines:
        if total >= limit:
            break
        total += count_sentences(split_words(line))
    return total
