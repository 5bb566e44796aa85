"""Open a reward run as an engine that trains nothing, on any layout."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt.data.config import DataConfig
from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from gpt.model.heads import ScalarHead
from gpt.post_training.sequence_scores import Floats, Ints, row_tokens_for, score_sequences
from gpt.tokenizer.tokenizers import Tokenizer
from gpt.training.engine import Engine
from gpt.training.objective import Objective
from launch.runs.open_engine import opened_engine
from launch.runs.saved_run import model_section, objective_section
from parallel.checkpoint.handle import Checkpoint


@dataclass(frozen=True)
class OpenedReward:
    """A reward run's engine with the weights of a checkpoint. `is_main`: the one rank that prints and writes."""

    engine: Engine
    run_directory: Path
    checkpoint: Checkpoint
    model: ModelConfig
    data_config: DataConfig
    tokenizer: Tokenizer
    tokenizer_file: Path
    tensor: int
    batch_tokens: int
    notes: tuple[str, ...]
    is_main: bool

    def scores(self, sequences: Sequence[Ints], *, advance: Callable[[int], None] = lambda n: None) -> Floats:
        """The reward of each sequence of token ids, (n,), on every rank. Every rank must call it.

        NaN for sequences that are empty or longer than model.n_ctx.
        """
        scores = np.full(len(sequences), np.nan)
        fits = [i for i, ids in enumerate(sequences) if 0 < len(ids) <= self.model.n_ctx]
        if not fits:
            return scores
        kept = [sequences[i] for i in fits]
        row_tokens = row_tokens_for([len(ids) for ids in kept], multiple=self.tensor)
        rows = max(1, self.batch_tokens // row_tokens)
        scores[fits] = score_sequences(self.engine, kept, row_tokens=row_tokens, rows_at_once=rows, advance=advance)
        return scores


@contextmanager
def opened_reward(args: argparse.Namespace) -> Iterator[OpenedReward]:
    """Open the reward run of a command's arguments. Collective: under a launcher every rank must enter the context.

    ConfigError: as for `opened_engine`, and for a run that is no reward run.
    """
    with opened_engine(args, reward_objective) as opened:
        yield OpenedReward(
            engine=opened.engine,
            run_directory=opened.run_directory,
            checkpoint=opened.checkpoint,
            model=opened.model,
            data_config=opened.data_config,
            tokenizer=opened.tokenizer,
            tokenizer_file=opened.tokenizer_file,
            tensor=opened.tensor,
            batch_tokens=args.batch_tokens,
            notes=opened.notes,
            is_main=opened.is_main,
        )


def reward_objective(config: dict[str, Any], run: Path) -> Objective:
    """The objective of a run's configuration. ConfigError if its model gives no reward."""
    objective = objective_section(config).build(z_loss=0.0)
    with torch.device("meta"):
        if isinstance(objective.head(model_section(config)), ScalarHead):
            return objective
    raise ConfigError(f"{run} is not a reward run: its model predicts tokens. Train one with objective.kind = 'reward'")
