"""Open a reward run as an engine that trains nothing, on any layout."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt.errors import ConfigError
from gpt.model.heads import ScalarHead
from gpt.post_training.sequence_scores import Floats, Ints, row_tokens_for, score_sequences
from gpt.training.objective import Objective
from launch.runs.open_engine import OpenedEngine, opened_engine
from launch.runs.saved_run import model_section, objective_section


@dataclass(frozen=True)
class OpenedReward:
    """A reward run with the weights of a checkpoint."""

    run: OpenedEngine
    batch_tokens: int

    def scores(self, sequences: Sequence[Ints], *, advance: Callable[[int], None] = lambda n: None) -> Floats:
        """The reward of each sequence of token ids, (n,), on every rank. Every rank must call it.

        NaN for sequences that are empty or longer than model.n_ctx.
        """
        scores = np.full(len(sequences), np.nan)
        fits = [i for i, ids in enumerate(sequences) if 0 < len(ids) <= self.run.model.n_ctx]
        if not fits:
            return scores
        kept = [sequences[i] for i in fits]
        row_tokens = row_tokens_for([len(ids) for ids in kept], multiple=self.run.tensor)
        rows = max(1, self.batch_tokens // row_tokens)
        scores[fits] = score_sequences(self.run.engine, kept, row_tokens=row_tokens, rows_at_once=rows, advance=advance)
        return scores


@contextmanager
def opened_reward(args: argparse.Namespace) -> Iterator[OpenedReward]:
    """Open the reward run of a command's arguments. Collective: under a launcher every rank must enter the context.

    ConfigError: as for `opened_engine`, and for a run that is no reward run.
    """
    with opened_engine(args, reward_objective) as opened:
        yield OpenedReward(opened, args.batch_tokens)


def reward_objective(config: dict[str, Any], run: Path) -> Objective:
    """The objective of a run's configuration. ConfigError if its model gives no reward."""
    objective = objective_section(config).build(z_loss=0.0)
    with torch.device("meta"):
        if isinstance(objective.head(model_section(config)), ScalarHead):
            return objective
    raise ConfigError(f"{run} is not a reward run: its model predicts tokens. Train one with objective.kind = 'reward'")
