"""Choose a checkpoint by the reward of its answers, as InstructGPT chose its supervised models (arXiv 2203.02155, C.1).

`triaxial choose` writes the choice to RUN/chosen.json, which `--step best` reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpt.evaluation.intervals import Interval, bootstrap_interval

RESAMPLES = 2000


@dataclass(frozen=True)
class ScoredCheckpoint:
    """The rewards of a checkpoint's answers, and their difference from the best checkpoint's, with 95% intervals."""

    step: int
    reward: Interval
    behind: Interval  # reward minus that of the best, by prompt
    unscored: int


def ranked_checkpoints(steps: Sequence[int], rewards: Sequence[Sequence[float]]) -> list[ScoredCheckpoint]:
    """The best first. `rewards`: of each step, one for each answer, of the same prompts in the same order.

    An answer that any checkpoint lacks a finite reward of counts for none. Of equal means the earlier step is first.
    """
    table = np.array(rewards, dtype=np.float64)  # (steps, answers)
    known = np.isfinite(table).all(axis=0)
    means = table[:, known].mean(axis=1) if known.any() else np.full(len(steps), np.nan)
    order = sorted(range(len(steps)), key=lambda i: (-means[i], steps[i]))
    best = table[order[0], known]
    return [
        ScoredCheckpoint(
            steps[i],
            bootstrap_interval([[value] for value in table[i, known].tolist()], resamples=RESAMPLES),
            bootstrap_interval([[value] for value in (table[i, known] - best).tolist()], resamples=RESAMPLES),
            unscored=int((~np.isfinite(table[i])).sum()),
        )
        for i in order
    ]
