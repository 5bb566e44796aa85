"""The parts of `triaxial best-of-n`: rewards of conversations by a run or a function, and the files."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.conversations.conversation import Turn
from gpt.errors import ConfigError
from gpt.post_training.analysis.best_of_n import Score, ScoredSamples
from gpt.post_training.ppo.config import RewardSource
from gpt.post_training.ppo.rewards import call_reward, load_function
from launch.comparison.prompts import ComparedPrompt
from launch.library.reward_model import load_reward

Turns = tuple[Turn, ...]


def reward_of(option: str, name: str, *, device: str, dtype: str) -> Score[Turns]:
    """A reward of answers: a reward run's directory, or a function `module:name` of lists of prompts and answers.

    A function gets the text of the last turn of each prompt. ConfigError: neither of the two.
    """
    if Path(name).exists():
        model = load_reward(name, device=device, dtype=dtype)

        def by_model(prompts: list[Turns], texts: list[str]) -> Sequence[float]:
            empty = [not text.strip() for text in texts]
            asked = [_messages(turns, text) for turns, text, no in zip(prompts, texts, empty, strict=True) if not no]
            rewards = iter(model.score(asked))
            return [math.nan if no else next(rewards) for no in empty]

        return by_model
    if ":" not in name:
        raise ConfigError(f"{option} {name} is invalid: no such run. Give a reward run, or a function module:name.")
    function = load_function(RewardSource(function=name))
    return lambda prompts, texts: call_reward(
        function, [turns[-1].text for turns in prompts], texts, name=name
    ).tolist()


def _messages(turns: Turns, answer: str) -> list[dict[str, str]]:
    return [turn.message for turn in (*turns, Turn("assistant", answer))]


def best_lines(prompts: Sequence[ComparedPrompt], samples: ScoredSamples) -> list[dict[str, Any]]:
    """The best answer to each prompt, as `triaxial compare` reads answers."""
    n = samples.proxy.shape[1]
    return [
        {
            "prompt": prompt.shown,
            "text": samples.completions[row][i],
            "reward": _number(samples.proxy[row, i]),
            **({} if samples.gold is None else {"gold": _number(samples.gold[row, i])}),
        }
        for row, (prompt, i) in enumerate(zip(prompts, samples.chosen(n), strict=True))
    ]


def sample_lines(prompts: Sequence[ComparedPrompt], samples: ScoredSamples) -> list[dict[str, Any]]:
    """All answers to each prompt with their rewards, as `triaxial prepare` reads rankings."""
    return [
        {
            "prompt": prompt.shown,
            "completions": [
                {"text": text, "score": _number(score)} for text, score in zip(texts, scores.tolist(), strict=True)
            ],
        }
        for prompt, texts, scores in zip(prompts, samples.completions, samples.proxy, strict=True)
    ]


def _number(value: float | np.floating[Any]) -> float | None:
    return float(value) if math.isfinite(value) else None
