"""Rewrite texts as people do who evade a filter, and measure how much their scores fall.

Each perturbation is a pure function of a text and a seed, and changes a share of the words (hashtags and spacing too),
so that a text never changes from one run to the next.
"""

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gpt.moderation.probes.scoring import Score, Scores, checked_scores

Perturbation = Callable[[str, random.Random], str]  # of one word

# Letters of other scripts that look like Latin ones: Cyrillic, then Greek where Cyrillic has none.
HOMOGLYPHS: Mapping[str, str] = {
    **{"a": "\u0430", "c": "\u0441", "e": "\u0435", "i": "\u0456", "j": "\u0458", "o": "\u043e", "p": "\u0440"},
    **{"s": "\u0455", "x": "\u0445", "y": "\u0443", "v": "\u03bd", "A": "\u0410", "B": "\u0412", "C": "\u0421"},
    **{"E": "\u0415", "H": "\u041d", "I": "\u0406", "K": "\u041a", "M": "\u041c", "O": "\u041e", "P": "\u0420"},
    **{"S": "\u0405", "T": "\u0422", "X": "\u0425", "N": "\u039d", "Z": "\u0396"},
}
LEET: Mapping[str, str] = {"a": "4", "b": "8", "e": "3", "g": "9", "i": "1", "l": "1", "o": "0", "s": "5", "t": "7"}


def _spaced(word: str, draw: random.Random) -> str:
    return " ".join(word)


def _homoglyphs(word: str, draw: random.Random) -> str:
    return "".join(HOMOGLYPHS.get(letter, letter) for letter in word)


def _leet(word: str, draw: random.Random) -> str:
    return "".join(LEET.get(letter.lower(), letter) for letter in word)


def _hashtag(word: str, draw: random.Random) -> str:
    return f"#{word}"


def _misspelled(word: str, draw: random.Random) -> str:
    """Swap, drop or double one inner letter."""
    if len(word) < 4:
        return word
    i = draw.randrange(1, len(word) - 2)
    kind = draw.choice(("swap", "drop", "double"))
    if kind == "swap":
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    return word[:i] + word[i + 1 :] if kind == "drop" else word[: i + 1] + word[i:]


PERTURBATIONS: Mapping[str, Perturbation] = {
    "spacing": _spaced,
    "homoglyphs": _homoglyphs,
    "leetspeak": _leet,
    "hashtags": _hashtag,
    "misspelling": _misspelled,
}


@dataclass(frozen=True)
class PerturbationEffect:
    """Texts with a score of at least the threshold, before and after. `mean_change`: of the score, all texts."""

    name: str
    category: str
    texts: int
    flagged_before: int
    still_flagged: int
    mean_change: float


def perturbed(text: str, name: str, *, share: float = 0.5, seed: int = 0) -> str:
    """Return a text with about `share` of its words changed, at least one. White space becomes single spaces."""
    words = text.split()
    digest = hashlib.blake2b(f"{seed}\n{name}\n{text}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    draw = random.Random(int.from_bytes(digest, "little"))
    chosen = draw.sample(range(len(words)), min(len(words), max(1, round(share * len(words))))) if words else []
    change = PERTURBATIONS[name]
    for i in sorted(chosen):
        words[i] = change(words[i], draw)
    return " ".join(words)


def perturbation_effects(
    score: Score,
    texts: Sequence[str],
    categories: Sequence[str],
    *,
    thresholds: Sequence[float],
    share: float = 0.5,
    seed: int = 0,
) -> list[PerturbationEffect]:
    """Measure every perturbation on every category. Thresholds (c,)."""
    before = checked_scores(score, texts)
    found = []
    for name in PERTURBATIONS:
        after = checked_scores(score, [perturbed(text, name, share=share, seed=seed) for text in texts])
        found += [
            _effect(name, category, before[:, i], after[:, i], thresholds[i]) for i, category in enumerate(categories)
        ]
    return found


def _effect(name: str, category: str, before: Scores, after: Scores, threshold: float) -> PerturbationEffect:
    flagged = before >= threshold
    return PerturbationEffect(
        name,
        category,
        len(before),
        int(flagged.sum()),
        int((flagged & (after >= threshold)).sum()),
        float(np.mean(after - before)) if len(before) else 0.0,
    )
