"""C4's cleaning rules (arXiv 1910.10683, section 2.2): drops lines, then whole pages; has no list of bad words.

Names, order and counting are those of datatrove's C4QualityFilter, which follows C4's own code (c4_utils.py of
TensorFlow Datasets) with other thresholds; docs/guides/data/rules.md lists the differences.
"""

import re
from dataclasses import dataclass

from data_prep.documents.word_split import count_sentences, split_words
from data_prep.documents.words import TextView

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")


@dataclass(frozen=True)
class C4Config:
    """Section [quality.c4]. A threshold below 1 turns its rule off.

    Lines stay that end in one of `end_punctuation`, unless `filter_no_terminal_punct` is off (as for FineWeb), that
    have `min_words_per_line` words and none above `max_word_length` characters, words being what stands between blanks.
    Lines with "javascript" or one of `policy_substrings` go. A line that stays with "lorem ipsum" or "{" drops the
    page, as do fewer than `min_num_sentences` sentences in all lines that stay. `remove_citations`: [12], [edit],
    [citation needed].
    """

    remove_citations: bool = True
    filter_no_terminal_punct: bool = True
    end_punctuation: tuple[str, ...] = (".", "?", "!", '"', "'")
    min_num_sentences: int = 5
    min_words_per_line: int = 3
    max_word_length: int = 1000
    filter_lorem_ipsum: bool = True
    filter_javascript: bool = True
    filter_curly_bracket: bool = True
    filter_policy: bool = True
    policy_substrings: tuple[str, ...] = (
        "terms of use",
        "privacy policy",
        "cookie policy",
        "uses cookies",
        "use of cookies",
        "use cookies",
    )


def clean(view: TextView, config: C4Config) -> tuple[TextView, tuple[str, float] | None]:
    """(the text with only the lines that C4 keeps, why the page is dropped and what was measured, or None)."""
    text = view.text
    if config.remove_citations and "[" in text:
        lines = [_without_citations(line) for line in text.splitlines() if _may_stay(line, config)]
        text = "\n".join(lines)
    else:
        lines = [line.strip() for line in text.splitlines() if _may_stay(line, config)]
    special = _special_phrases(text, config)  # few pages have any
    kept: list[str] = []
    for line in lines:
        if not _ends_well(line, config):
            continue
        if special:
            lowered = line.lower()
            found = next((reason for phrase, reason in special if phrase in lowered), None)
            if found:
                return view, (found, len(kept))
            if found is not None:
                continue
        kept.append(line)
    n_sentences = _count_up_to(config.min_num_sentences, kept)
    if n_sentences < config.min_num_sentences:
        return view, ("too_few_sentences", n_sentences)
    text = "\n".join(kept).strip()
    if not text:
        return view, ("empty", 0)
    return view if text == view.text else TextView(text), None


def _special_phrases(text: str, config: C4Config) -> list[tuple[str, str]]:
    """Those phrases of the rules that are somewhere in the text, in the order in which they are looked for in a line,
    each with the reason for which it drops the page, or "" when it drops only its line."""
    lowered = text.lower()
    looked_for = (
        (config.filter_lorem_ipsum, ("lorem ipsum",), "lorem_ipsum"),
        (config.filter_javascript, ("javascript",), ""),
        (config.filter_curly_bracket, ("{",), "curly_bracket"),
        (config.filter_policy, config.policy_substrings, ""),
    )
    return [(phrase, why) for wanted, phrases, why in looked_for if wanted for phrase in phrases if phrase in lowered]


def _without_citations(line: str) -> str:
    return _CITATION.sub("", line.strip()) if "[" in line else line.strip()


def _may_stay(line: str, config: C4Config) -> bool:
    """Whether the line has words enough and none too long; citations still count as words."""
    enough, longest = max(config.min_words_per_line, 0), config.max_word_length
    if len(line.split(None, enough)) < enough:
        return False
    return longest < 1 or len(line) <= longest or all(len(word) <= longest for word in line.split())


def _ends_well(line: str, config: C4Config) -> bool:
    if not config.filter_no_terminal_punct:
        return True
    return line.endswith(config.end_punctuation) and not line.endswith("...")


def _count_up_to(enough: int, lines: list[str]) -> int:
    """Sentences in the lines; the count ends where there are enough."""
    total = 0
    for line in lines:
        if total >= enough:
            break
        total += count_sentences(split_words(line))
    return total
