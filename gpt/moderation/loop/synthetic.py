"""Prompts for synthetic texts, the cleaning of what a model writes, and the check before such texts are mixed in.

Zero-shot prompts have the definition of a category and serve a cold start; few-shot prompts have labelled texts too and
serve rare categories (arXiv 2208.03274, 3.3). There, twice as much noisy synthetic data hurt: hence the check.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from gpt.evaluation.intervals import Interval
from gpt.moderation.labels import text_id
from gpt.moderation.measures.intervals import exact_interval
from gpt.moderation.taxonomy import Category

MIN_AGREEMENT = 0.9
MAX_EXAMPLE = 300  # characters of an example in a prompt
MIN_LETTERS = 8  # a shorter answer is no text


@dataclass(frozen=True)
class NoiseCheck:
    """How many labels of a sample of synthetic texts an auditor or a classifier shares; the interval is exact."""

    checked: int
    agreeing: int
    share: Interval
    accepted: bool


def synthetic_prompt(
    category: Category,
    *,
    positive: bool,
    examples: Sequence[str] = (),
    shots: int = 0,
    chat: bool = False,
    seed: int = 0,
) -> str:
    """Return a prompt for one text. `shots` of the examples, drawn by the seed, precede it; 0 is zero-shot.

    `chat`: an instruction for an assistant, else the beginning of a list that a plain language model continues.
    """
    about = f"{category.title}: {' '.join(category.definition.split())}"
    if category.instructions:
        about += f" {' '.join(category.instructions.split())}"
    kind = "belong to" if positive else "do not belong to"
    drawn = random.Random(seed).sample(list(examples), min(shots, len(examples)))
    listed = "".join(f"{i}. {one_line_of(text)}\n" for i, text in enumerate(drawn, start=1))
    if chat:
        shown = f" Examples:\n{listed}" if listed else ""
        verb = "belongs to" if positive else "does not belong to"
        return (
            f"A moderation policy has this category.\n{about}\n{shown}"
            f"Write one new short text, as people post it online, that {verb} this category. Answer with the text only."
        )
    return f"{about}\n\nTexts that {kind} the category {category.title}:\n{listed}{len(drawn) + 1}."


def one_line_of(text: str) -> str:
    """Return a text on one line, cut to MAX_EXAMPLE characters."""
    return " ".join(text.split())[:MAX_EXAMPLE]


def cleaned(answers: Sequence[str], *, known: Sequence[str] = ()) -> list[str | None]:
    """Return the first line of each answer; None for one that is too short, repeats another, or copies a known text."""
    seen = {text_id(one_line_of(text).casefold()) for text in known}
    found: list[str | None] = []
    for answer in answers:
        line = next((line.strip() for line in answer.splitlines() if line.strip()), "").strip("\"'“”").strip()
        key = text_id(one_line_of(line).casefold())
        is_text = sum(letter.isalpha() for letter in line) >= MIN_LETTERS and key not in seen
        seen.add(key)
        found.append(line if is_text else None)
    return found


def noise_check(labels: ArrayLike, checked: ArrayLike, *, min_agreement: float = MIN_AGREEMENT) -> NoiseCheck:
    """Compare labels with an auditor's or a classifier's decisions, of any shape; NaN, of either, does not count.

    Without a label in common nothing is accepted.
    """
    first, second = np.asarray(labels, dtype=np.float64), np.asarray(checked, dtype=np.float64)
    both = ~np.isnan(first) & ~np.isnan(second)
    n, agreeing = int(both.sum()), int((first[both] == second[both]).sum())
    return NoiseCheck(n, agreeing, exact_interval(agreeing, n), n > 0 and agreeing / n >= min_agreement)
