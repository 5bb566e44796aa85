"""Input reduction: the few words on which a score depends (Feng and others, 2018; arXiv 2208.03274, 4.2).

Words are removed, one a round, as long as the score stays at or above a limit. Nonsense that is left over shows that
the classifier has learned an accident of its data.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpt.moderation.probes.scoring import Score, checked_scores

LIMIT = 0.8  # the paper's
MAX_BATCH = 256


@dataclass(frozen=True)
class Reduction:
    """What is left of a text. `kept`: indices of its words; `scores`: before and after; `rounds`: words removed."""

    text: str
    kept: tuple[int, ...]
    characters_before: int
    score_before: float
    score_after: float

    @property
    def characters_after(self) -> int:
        return len(self.text)


def reduce_texts(
    score: Score, texts: Sequence[str], category: int, *, limit: float = LIMIT, max_words: int = 200
) -> list[Reduction | None]:
    """Reduce each text: remove the word whose removal lowers the score least, until the next would fall below `limit`.

    Words are parts between white space. None: the score of the text is below the limit at first, or it has more than
    `max_words` words. A text of w words costs up to w^2 / 2 scores; all texts share batches.
    """
    words = [text.split() for text in texts]
    starts = checked_scores(score, texts)[:, category] if len(texts) else np.empty(0)
    kept = [list(range(len(parts))) for parts in words]
    after = starts.copy()
    active = [i for i, parts in enumerate(words) if starts[i] >= limit and 1 < len(parts) <= max_words]
    while active:
        shorter = [(i, j) for i in active for j in range(len(kept[i]))]
        found = _in_batches(score, [_without(words[i], kept[i], j) for i, j in shorter], category)
        best: dict[int, tuple[float, int]] = {}
        for (i, j), value in zip(shorter, found.tolist(), strict=True):
            if i not in best or value > best[i][0]:
                best[i] = (value, j)
        still = []
        for i, (value, j) in best.items():
            if value >= limit:
                after[i] = value
                del kept[i][j]
                still += [i] if len(kept[i]) > 1 else []
        active = still
    return [
        Reduction(
            " ".join(words[i][j] for j in kept[i]), tuple(kept[i]), len(texts[i]), float(starts[i]), float(after[i])
        )
        if starts[i] >= limit and len(words[i]) <= max_words
        else None
        for i in range(len(texts))
    ]


def _without(words: Sequence[str], kept: Sequence[int], position: int) -> str:
    return " ".join(words[j] for k, j in enumerate(kept) if k != position)


def _in_batches(score: Score, texts: Sequence[str], category: int) -> np.ndarray:
    parts = [checked_scores(score, texts[i : i + MAX_BATCH])[:, category] for i in range(0, len(texts), MAX_BATCH)]
    return np.concatenate(parts)
