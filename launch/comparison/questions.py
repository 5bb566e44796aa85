"""The questions of a blind comparison: pairs of answers to one prompt, in an order that depends on the seed only."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from gpt.errors import ConfigError

Prompt = str | list[dict[str, str]]  # a text, or messages with role and content


@dataclass(frozen=True)
class ModelAnswer:
    """An answer, the model that gave it, and an identifier that does not tell which."""

    answer_id: str
    model: str
    text: str


@dataclass(frozen=True)
class AnsweredPrompt:
    """One prompt with the answers of all models."""

    prompt_id: str
    prompt: Prompt
    answers: tuple[ModelAnswer, ...]


@dataclass(frozen=True)
class Question:
    """Two answers to one prompt, as a labeller sees them."""

    prompt: AnsweredPrompt
    left: ModelAnswer
    right: ModelAnswer


def answered_prompts(
    prompts: Sequence[Prompt], answers: Mapping[str, Sequence[str]], *, seed: int
) -> list[AnsweredPrompt]:
    """Join prompts and answers. `answers`: model -> one text per prompt."""
    found = []
    for i, prompt in enumerate(prompts):
        prompt_id = digest("prompt", i, prompt)
        given = tuple(
            ModelAnswer(digest(seed, prompt_id, model, texts[i]), model, texts[i]) for model, texts in answers.items()
        )
        found.append(AnsweredPrompt(prompt_id, prompt, given))
    return found


def digest(*parts: object) -> str:
    """12 hexadecimal digits that depend on all parts."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def make_questions(prompts: Sequence[AnsweredPrompt], *, seed: int) -> tuple[list[Question], int]:
    """Return the questions in the order in which they are asked, and the number of pairs with equal texts.

    Of each pair of models, either is on the left in half of the questions. Equal texts are not asked.
    """
    rng = np.random.default_rng(seed)
    questions, n_equal = [], 0
    n_models = len(prompts[0].answers) if prompts else 0
    for first, second in combinations(range(n_models), 2):
        asked = [one for one in prompts if one.answers[first].text.strip() != one.answers[second].text.strip()]
        n_equal += len(prompts) - len(asked)
        swapped = rng.permutation(len(asked)) % 2 == 0
        for one, is_swapped in zip(asked, swapped.tolist(), strict=True):
            pair = one.answers[first], one.answers[second]
            questions.append(Question(one, *(reversed(pair) if is_swapped else pair)))
    return [questions[i] for i in rng.permutation(len(questions)).tolist()], n_equal


def prompt_record(one: AnsweredPrompt) -> dict[str, Any]:
    """A line of answers.jsonl, the key of a comparison."""
    answers = [{"id": answer.answer_id, "model": answer.model, "text": answer.text} for answer in one.answers]
    return {"prompt_id": one.prompt_id, "prompt": one.prompt, "answers": answers}


def question_record(question: Question) -> dict[str, Any]:
    """A question for the page. It does not name the models."""
    sides = (question.left, question.right)
    left, right = ({"id": side.answer_id, "text": side.text} for side in sides)
    return {"prompt_id": question.prompt.prompt_id, "prompt": question.prompt.prompt, "left": left, "right": right}


def model_names(paths: Sequence[Path]) -> list[str]:
    """Short names of the runs: the last parts of their paths, as many as make them different.

    ConfigError: the same path twice.
    """
    if len(set(paths)) < len(paths):
        raise ConfigError(f"RUN {next(p for p in paths if paths.count(p) > 1)} is given twice. Give different runs.")
    parts = [path.absolute().parts for path in paths]
    for n in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-n:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError("The runs are the same directory. Give different runs.")
