"""Rewards of responses: by a model with a scalar head, or by a Python function.

Shapes: n episodes, t = data.seq_len.
"""

import sys
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from gpt.errors import ConfigError, file_error
from gpt.losses.batch import Batch
from gpt.losses.marks import IGNORE
from gpt.post_training.ppo.config import RewardSource
from gpt.post_training.ppo.episodes import Episodes
from gpt.tokenizer.tokenizers import Tokenizer
from gpt.training.engine import Engine

RewardFunction = Callable[[list[str], list[str]], Sequence[float]]


class ResponseReward(Protocol):
    """A reward of each episode."""

    @property
    def per_data_rank(self) -> bool:
        """Whether all ranks of a data rank must call `scores`, else one of them."""
        ...

    def scores(self, episodes: Episodes) -> Tensor:
        """(n,) float64, NaN where there is no reward."""
        ...


@dataclass(frozen=True)
class ScalarReward:
    """The reward of a prompt with its response by a reward model."""

    engine: Engine
    per_data_rank: ClassVar[bool] = True

    def scores(self, episodes: Episodes) -> Tensor:
        targets = torch.full_like(episodes.tokens, IGNORE)
        values = (
            self.engine.token_values(Batch(episodes.tokens, targets, lengths=episodes.total_tokens)).cpu().double()
        )  # (n, t)
        return values.gather(1, (episodes.total_tokens - 1).unsqueeze(1)).squeeze(1)


@dataclass(frozen=True)
class FunctionReward:
    """A Python function of the texts of prompts and responses. The end token is no part of a text."""

    name: str
    function: RewardFunction
    tokenizer: Tokenizer
    per_data_rank: ClassVar[bool] = False

    def scores(self, episodes: Episodes) -> Tensor:
        prompts = [self.tokenizer.decode(prompt) for prompt in episodes.prompts()]
        responses = [
            self.tokenizer.decode(response[:-1] if ended else response)
            for response, ended in zip(episodes.responses(), episodes.ended.tolist(), strict=True)
        ]
        return call_reward(self.function, prompts, responses, name=self.name)


def call_reward(function: RewardFunction, prompts: list[str], responses: list[str], *, name: str) -> Tensor:
    """Call a reward function of n texts; returns (n,) float64. ConfigError: it raises, with the line of its file."""
    try:
        found: Any = function(prompts, responses)
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        said = f"the reward '{name}' raised {type(error).__name__}: {text}{_where(error)}"
        raise (file_error(error, said) if isinstance(error, OSError) else ConfigError(said)) from error
    return as_scores(found, n=len(responses), name=name)


def as_scores(found: Any, *, n: int, name: str) -> Tensor:
    """Convert the result of a reward function to (n,) float64. ConfigError: it is not n numbers."""
    values = found.tolist() if hasattr(found, "tolist") else found
    if not isinstance(values, (list, tuple)):
        raise ConfigError(f"the reward '{name}' returned {type(found).__name__}: must be a list of {n} numbers")
    if len(values) != n:
        raise ConfigError(f"the reward '{name}' returned {len(values)} numbers for {n} responses: must be one for each")
    try:
        return torch.tensor([float("nan") if value is None else float(value) for value in values], dtype=torch.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"the reward '{name}' returned a list that is not all numbers ({error})") from None


def load_function(source: RewardSource) -> RewardFunction:
    """The function of a reward, from the Python path or the current folder. ConfigError: it cannot be imported."""
    sys.path.insert(0, "")  # the current folder, as `python -m` has it
    try:
        function: Any = resolve_name(source.function)
    except Exception as error:
        text = " ".join(str(error).split())
        raise ConfigError(
            f"objective.rewards: function = '{source.function}' cannot be imported: {type(error).__name__}: "
            f"{text}{_where(error)}"
        ) from error
    finally:
        with suppress(ValueError):
            sys.path.remove("")
    if not callable(function):
        raise ConfigError(f"objective.rewards: function = '{source.function}' is invalid: must be a function")
    typed: RewardFunction = function
    return typed


def _where(error: Exception) -> str:
    """Return " (FILE:LINE)" of the innermost line of the user's own code: neither ours nor a library's. "" without one.

    The text of a SyntaxError has its line already.
    """
    paths = sysconfig.get_paths()
    libraries = (*(paths[name] for name in ("stdlib", "purelib", "platlib")), "<frozen", __file__)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(libraries)]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
