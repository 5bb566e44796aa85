"""The parts of a PPO run: its engines, rewards and data, and how the ranks exchange a few numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from gpt.data.dataset import TrainingData
from gpt.errors import ConfigError, MachineFault
from gpt.post_training.ppo.config import GRPOConfig, PPOConfig
from gpt.post_training.ppo.rewards import ResponseReward
from gpt.tokenizer.tokenizers import Tokenizer
from gpt.training.engine import Engine

T = TypeVar("T")


@dataclass(frozen=True)
class PPOModels:
    """Engines over one mesh. Every rank holds its shard of each. `reference` and those of the rewards never learn."""

    policy: Engine
    reference: Engine
    value: Engine | None  # None: advantages are relative to a group
    ema: Engine | None
    rewards: Sequence[ResponseReward]
    gold: Sequence[ResponseReward]


@dataclass(frozen=True)
class PPOSetup:
    """Everything that a PPO run needs besides its models.

    `sampled_by`: a digest of the first weights, the data and all settings that decide what is sampled. It distinguishes
    the rollouts of different runs in one folder. `writes`: this rank writes files and calls reward functions for its
    data rank; exactly one rank of each does.
    """

    config: PPOConfig
    prompts: TrainingData
    ptx: TrainingData | None
    tokenizer: Tokenizer
    end_ids: tuple[int, ...]
    rollouts: Path
    episodes: int  # of an iteration, over all data ranks
    seq_len: int
    seed: int
    writes: bool
    sampled_by: str
    group: GRPOConfig | None = None  # of several responses to a prompt, with their settings
    trim_to: int | None = None  # columns that no episode of a data rank needs are cut, to a multiple of this

    @property
    def minibatch(self) -> int:
        """Episodes of an update, over all data ranks."""
        return min(self.config.minibatch_episodes, self.episodes)


def exchange(engine: Engine, value: T, *, writes: bool) -> list[T]:
    """The values of all data ranks, in order; each is that of the rank that writes. Every rank must call it."""
    found = engine.all_gather_objects([value] if writes else [])
    return [cast(T, one) for (one,) in found]


def agree(engine: Engine, error: ConfigError | None) -> None:
    """Raise the first error of any rank on all ranks, with its exit status. Every rank must call it."""
    found = engine.all_gather_objects([] if error is None else [(str(error), error.exit_status)])
    if found:
        text, status = found[0][0]
        raise (MachineFault if status == MachineFault.exit_status else ConfigError)(text) from error


def any_rank(engine: Engine, here: bool) -> bool:
    """Whether any rank says so. Every rank must call it."""
    return any(engine.all_gather_objects([True] if here else []))
