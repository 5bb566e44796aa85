"""C4's cleaning rules (arXiv 1910.10683, section 2.2): drops lines, then whole pages; has no list of bad words."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s|$)")
_TERMINAL = (".", "!", "?", '"', "'", "”", "’")


@dataclass(frozen=True)
class C4Config:
    """Section [quality.c4]; the defaults are the paper's, and the long-word and policy lines are those of its code."""

    terminal_punctuation: bool = True  # keep only lines that end like a sentence
    min_line_words: int = 3
    min_sentences: int = 5
    max_word_length: int = 1000
    drop_curly_brackets: bool = True
    drop_lorem_ipsum: bool = True
    drop_javascript_lines: bool = True
    drop_policy_lines: bool = True
    policy_phrases: tuple[str, ...] = (
        "terms of use",
        "privacy policy",
        "cookie policy",
        "uses cookies",
        "use of cookies",
        "use cookies",
    )
    remove_citations: bool = True


def clean(text: str, config: C4Config) -> tuple[str, str | None]:
    """(the text with only the lines that C4 keeps, why the page is dropped or None)."""
    kept: list[str] = []
    for line in map(str.strip, text.splitlines()):
        if config.remove_citations:
            line = _CITATION.sub("", line)
        lowered = line.lower()
        if not _keeps_line(line, lowered, config):
            continue
        if config.drop_lorem_ipsum and "lorem ipsum" in lowered:
            return text, "lorem_ipsum"
        if config.drop_curly_brackets and "{" in line:
            return text, "curly_bracket"
        kept.append(line)
    if _count_sentences(kept) < config.min_sentences:
        return text, "too_few_sentences"
    return "\n".join(kept), None


def _keeps_line(line: str, lowered: str, config: C4Config) -> bool:
    words = line.split()
    if len(words) < config.min_line_words or any(len(word) > config.max_word_length for word in words):
        return False
    if config.terminal_punctuation and (not line.endswith(_TERMINAL) or line.endswith("...")):
        return False
    if config.drop_javascript_lines and "javascript" in lowered:
        return False
    return not (config.drop_policy_lines and any(phrase in lowered for phrase in config.policy_phrases))


def _count_sentences(lines: Iterable[str]) -> int:
    """Ends of sentences; a line is at least one sentence, as the paper's splitter sees it."""
    return sum(max(len(_SENTENCE_END.findall(line)), 1) for line in lines)
