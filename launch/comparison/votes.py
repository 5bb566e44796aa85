"""Read the files of votes that the blind page saves, and join them with the models that gave the answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpt.errors import ConfigError
from gpt.files.json_files import read_json_lines

ANSWERS = "answers.jsonl"
Outcome = Literal["first", "second", "tie"]


@dataclass(frozen=True)
class KnownAnswer:
    """An answer of a comparison, by its identifier."""

    model: str
    prompt_id: str
    n_words: int


@dataclass(frozen=True)
class Vote:
    """One labeller's choice between two models' answers to one prompt. `first` is the smaller name."""

    labeller: str
    prompt_id: str
    first: str
    second: str
    outcome: Outcome
    first_is_left: bool
    more_words: Outcome  # the answer with more words

    @property
    def question(self) -> tuple[str, str, str]:
        return self.prompt_id, self.first, self.second


def read_key(directory: Path) -> dict[str, KnownAnswer]:
    """The answers of a comparison by their identifiers. ConfigError: the directory is not that of a comparison."""
    if not (directory / ANSWERS).is_file():
        raise ConfigError(f"{directory} is not the folder of a comparison: it has no {ANSWERS}. Give its --output.")
    known: dict[str, KnownAnswer] = {}
    for where, record in read_json_lines(directory / ANSWERS):
        try:
            for answer in record["answers"]:
                words = len(str(answer["text"]).split())
                known[str(answer["id"])] = KnownAnswer(str(answer["model"]), str(record["prompt_id"]), words)
        except (KeyError, TypeError):
            raise ConfigError(f"{where} is damaged. Run the comparison again.") from None
    return known


def read_votes(paths: Sequence[Path], known: dict[str, KnownAnswer]) -> tuple[list[Vote], int]:
    """Read files of votes. If a labeller answered a question twice, the later one counts.

    Returns the votes and the number of replaced ones. ConfigError: a line is no vote, or one of another comparison.
    """
    votes: dict[tuple[str, ...], Vote] = {}
    n_read = 0
    for path in paths:
        for where, record in read_json_lines(path):
            vote = _vote(record, known, where)
            votes[(vote.labeller, *vote.question)] = vote
            n_read += 1
    return list(votes.values()), n_read - len(votes)


def _vote(record: dict[str, Any], known: dict[str, KnownAnswer], where: str) -> Vote:
    labeller, sides = record.get("labeller"), record.get("completions")
    if not isinstance(labeller, str) or not isinstance(sides, list) or len(sides) != 2:
        raise ConfigError(f"{where} is no vote: it needs a labeller and two completions.")
    answers, ranks = [], []
    for side in sides:
        rank = side.get("rank") if isinstance(side, dict) else None
        if rank not in (1, 2) or isinstance(rank, bool):
            raise ConfigError(f"{where} is no vote: the rank of a completion must be 1 or 2.")
        answer = known.get(str(side.get("id")))
        if answer is None:
            raise ConfigError(f"{where} is a vote on another comparison. Give the folder that it belongs to.")
        answers.append(answer)
        ranks.append(rank)
    left, right = answers
    if left.prompt_id != right.prompt_id or left.model == right.model:
        raise ConfigError(f"{where} is no vote: its completions are not two models' answers to one prompt.")
    is_left = left.model < right.model
    first, second = (0, 1) if is_left else (1, 0)
    return Vote(
        labeller=labeller,
        prompt_id=left.prompt_id,
        first=answers[first].model,
        second=answers[second].model,
        outcome=_order(ranks[second], ranks[first]),
        first_is_left=is_left,
        more_words=_order(answers[first].n_words, answers[second].n_words),
    )


def _order(first: int, second: int) -> Outcome:
    """The larger one."""
    return "tie" if first == second else "first" if first > second else "second"
