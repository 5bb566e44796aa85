"""The parts of `triaxial toxicity`: prompts in the form of RealToxicityPrompts, scores, and the groups of prompts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.conversations.conversation import Turn
from gpt.errors import ConfigError
from gpt.files.json_files import read_json_lines
from gpt.post_training.analysis.best_of_n import Score
from gpt.post_training.analysis.toxicity import TOXIC, Scores, Toxicity, toxicity_of
from launch.comparison.prompts import ComparedPrompt
from launch.evaluation.best_of_n import Turns, reward_of
from launch.generation.chat import ChatPrompt
from launch.generation.jobs import PromptLine


@dataclass(frozen=True)
class ToxicityPrompt:
    """A prompt, and its own toxicity from 0 to 1 if the file has it."""

    compared: ComparedPrompt
    toxicity: float | None


def read_toxicity_prompts(path: Path, *, prefix: str, chat: bool) -> list[ToxicityPrompt]:
    """Read JSON lines whose `prompt` is a text, or an object with `text` and maybe `toxicity`.

    `prefix` goes before each text, such as an instruction to be respectful. `chat`: each text is a turn of the user.
    ConfigError: a line has no text; names the first such line.
    """
    found = []
    for where, fields in read_json_lines(path, option="--prompts"):
        prompt = fields.get("prompt")
        text = prompt.get("text") if isinstance(prompt, dict) else prompt
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(
                f'{where} has no prompt. Give {{"prompt": "TEXT"}} or {{"prompt": {{"text": "TEXT", "toxicity": 0.3}}}}'
            )
        own = prompt.get("toxicity") if isinstance(prompt, dict) else None
        whole = prefix + text
        turns = ChatPrompt((Turn("user", whole),), where) if chat else None
        compared = ComparedPrompt(whole, PromptLine({"prompt": whole}, where), turns)
        found.append(ToxicityPrompt(compared, _share(own)))
    if not found:
        raise ConfigError(f"--prompts {path} is empty. Give JSON lines with a prompt each")
    return found


def _share(value: object) -> float | None:
    """Return a number from 0 to 1, None of anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= 1 else None


def scorer_of(name: str, *, device: str) -> Score[Turns]:
    """Open a scorer: a function `module:name` of numbers from 0 to 1, or a reward run, whose reward is a logit.

    ConfigError: neither of the two.
    """
    score = reward_of("--scorer", name, device=device, dtype="float32")
    if not Path(name).exists():
        return score
    return lambda prompts, texts: (1 / (1 + np.exp(-np.array(score(prompts, texts), dtype=np.float64)))).tolist()


def score_texts(score: Score[Turns], prompts: Sequence[ToxicityPrompt], texts: list[str], *, k: int) -> Scores:
    """The scores (prompts, k) of continuations, which are in k rounds over all prompts. NaN: no score.

    ConfigError: the scorer fails, or a number is outside 0 to 1.
    """
    asked: list[Turns] = [(Turn("user", str(prompt.compared.shown)),) for prompt in prompts]
    scores = np.array(score(k * asked, texts), dtype=np.float64)
    outside = scores[np.isfinite(scores) & ((scores < 0) | (scores > 1))]
    if len(outside):
        raise ConfigError(f"--scorer gave the score {outside[0]:.4g}: must be from 0 to 1")
    return np.where(np.isfinite(scores), scores, np.nan).reshape(k, -1).T


def by_group(prompts: Sequence[ToxicityPrompt], scores: Scores) -> dict[str, Toxicity]:
    """The measures over all prompts, and over those that are toxic themselves and those that are not, if known."""
    found = {"all prompts": toxicity_of(scores)}
    for name, toxic in (("toxic prompts", True), ("other prompts", False)):
        rows = [i for i, one in enumerate(prompts) if one.toxicity is not None and (one.toxicity >= TOXIC) == toxic]
        if rows:
            found[name] = toxicity_of(scores[rows])
    return found


def continuation_lines(prompts: Sequence[ToxicityPrompt], texts: list[str], scores: Scores) -> list[dict[str, Any]]:
    """Each prompt with its continuations and their scores."""
    n = len(prompts)
    return [
        {
            "prompt": prompt.compared.shown,
            "toxicity": prompt.toxicity,
            "continuations": [
                {"text": text, "score": None if math.isnan(score) else score}
                for text, score in zip(texts[i::n], scores[i].tolist(), strict=True)
            ],
        }
        for i, prompt in enumerate(prompts)
    ]


def repeated(prompts: Sequence[ToxicityPrompt], k: int) -> list[ComparedPrompt]:
    """The prompts of k rounds, each with a line of its own, so that every continuation has its own seed."""
    return [replace(prompt.compared) for _ in range(k) for prompt in prompts]
