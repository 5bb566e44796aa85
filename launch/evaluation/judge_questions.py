"""Answer the questions of MT-bench, of one or several turns, for a judge: JSON lines as FastChat writes them."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.conversations.chat_format import ChatEncoder
from data_prep.conversations.conversation import Turn, UnusableRecord
from gpt.errors import ConfigError
from gpt.files.json_files import read_json_lines
from gpt.inference.model import InferenceModel
from gpt.inference.sampling_settings import Sampling
from launch.generation.chat import ChatPrompt, ChatSettings, answer_chats
from launch.runs.saved_run import SavedRun

# FastChat's temperatures by category; 0.7 elsewhere.
TEMPERATURES = {
    **dict.fromkeys(("writing", "roleplay"), 0.7),
    **dict.fromkeys(("extraction", "math", "coding", "reasoning"), 0.0),
    **dict.fromkeys(("stem", "humanities"), 0.1),
}
OTHER_TEMPERATURE = 0.7


@dataclass(frozen=True)
class JudgeQuestion:
    """One question: what the user says in each turn."""

    question_id: int | str
    category: str
    turns: tuple[str, ...]
    where: str


@dataclass(frozen=True)
class JudgedTurns:
    """The answers to the turns of each question; "" where a turn has no answer, with the number of these by reason."""

    answers: list[list[str]]
    unanswered: dict[str, int]


def read_questions(path: Path) -> list[JudgeQuestion]:
    """Read question.jsonl of MT-bench. ConfigError: a line without question_id and turns; names the first such line."""
    found = []
    for where, record in read_json_lines(path, option="--questions"):
        turns = record.get("turns")
        texts = [turn for turn in turns if isinstance(turn, str) and turn.strip()] if isinstance(turns, list) else []
        if not texts or texts != turns or not isinstance(record.get("question_id"), (int, str)):
            raise ConfigError(f"{where} must be an object with 'question_id' and 'turns', a list of texts.")
        found.append(JudgeQuestion(record["question_id"], str(record.get("category", "")), tuple(texts), where))
    if not found:
        raise ConfigError(f"--questions {path} has no lines. Give question.jsonl of MT-bench.")
    return found


def answer_questions(
    model: InferenceModel,
    saved: SavedRun,
    encoder: ChatEncoder,
    questions: Sequence[JudgeQuestion],
    settings: ChatSettings,
    *,
    temperature: float | None,
    seed: int,
) -> JudgedTurns:
    """Answer all turns in order. `temperature`: None for FastChat's by category. Question i has the seed `seed` + i.

    Every rank of a layout must call it; all get all answers.
    """
    spoken: list[list[Turn]] = [[] for _ in questions]
    answers: list[list[str]] = [[] for _ in questions]
    unanswered: dict[str, int] = {}
    for number in range(max(len(question.turns) for question in questions)):
        groups: dict[float, list[int]] = {}
        for i, question in enumerate(questions):
            if number >= len(question.turns):
                continue
            spoken[i].append(Turn("user", question.turns[number]))
            if fault := _fault(encoder, spoken[i], saved.model_config.n_ctx):
                unanswered[fault] = unanswered.get(fault, 0) + 1
                _add(answers[i], spoken[i], "")
            else:
                groups.setdefault(_temperature(question, temperature), []).append(i)
        for degree, chosen in sorted(groups.items()):
            prompts = [ChatPrompt(tuple(spoken[i]), questions[i].where) for i in chosen]
            how = replace(settings, sampling=Sampling(degree))
            seeds = [seed + i for i in chosen]
            for i, text in zip(chosen, answer_chats(model, saved, encoder, prompts, how, seeds=seeds), strict=True):
                _add(answers[i], spoken[i], text)
    return JudgedTurns(answers, unanswered)


def _add(answers: list[str], spoken: list[Turn], text: str) -> None:
    answers.append(text)
    spoken.append(Turn("assistant", text))


def _temperature(question: JudgeQuestion, given: float | None) -> float:
    return TEMPERATURES.get(question.category, OTHER_TEMPERATURE) if given is None else given


def _fault(encoder: ChatEncoder, turns: Sequence[Turn], n_ctx: int) -> str:
    """Why these turns cannot be answered; "" if they can."""
    try:
        return "" if len(encoder.prompt(turns)) < n_ctx else "longer than the context"
    except UnusableRecord as error:
        return error.reason


def answer_line(question: JudgeQuestion, answers: Sequence[str], *, model_id: str) -> dict[str, Any]:
    """A line of model_answer/MODEL.jsonl, which `gen_judgment.py` of FastChat reads."""
    digest = hashlib.sha256("\0".join([model_id, str(question.question_id), *answers]).encode("utf-8", "replace"))
    return {
        "question_id": question.question_id,
        "answer_id": digest.hexdigest()[:22],
        "model_id": model_id,
        "choices": [{"index": 0, "turns": list(answers)}],
        "tstamp": time.time(),
    }
