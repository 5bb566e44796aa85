"""Rankings and demonstrations in files of JSON lines or Parquet, as sequences to score in a run's chat format."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from data_prep.conversations.chat_format import ChatEncoder
from data_prep.conversations.config import ConversationsConfig
from data_prep.conversations.conversation import Conversation, UnusableRecord, prompt_id
from data_prep.conversations.read import conversations_of_file, describe_left_out
from gpt.errors import ConfigError
from gpt.post_training.ranking_accuracy import RankedPrompt
from gpt.post_training.sequence_scores import Ints


@dataclass(frozen=True)
class FoundTexts:
    """The usable rankings or demonstrations of a file, and how many records or answers were left out, by reason."""

    rankings: tuple[RankedPrompt, ...]
    demonstrations: tuple[Ints, ...]
    left_out: Counter[str]


def read_texts(path: Path, kind: Literal["rankings", "demonstrations"], encoder: ChatEncoder) -> FoundTexts:
    """Read a file in any shape that `triaxial prepare` reads, and encode whole conversations.

    `encoder`: see launch.runs.chat_format. ConfigError: nothing in the file can be used.
    """
    config = ConversationsConfig(kind)
    left_out: Counter[str] = Counter()
    rankings, sequences = list[RankedPrompt](), list[Ints]()
    for _, conversation in conversations_of_file(path, config, left_out):
        try:
            encoded = [_encoded(conversation, i, encoder) for i in range(len(conversation.answers))]
        except UnusableRecord as error:
            left_out[error.reason] += 1
            continue
        if kind == "rankings":
            rankings.append(_ranked(conversation, encoded))
        else:
            sequences += encoded
    if not rankings and not sequences:
        raise ConfigError(f"{path} is invalid: it has no {kind} that can be used ({describe_left_out(left_out)})")
    return FoundTexts(tuple(rankings), tuple(sequences), left_out)


def _encoded(conversation: Conversation, answer: int, encoder: ChatEncoder) -> Ints:
    """The ids of the prompt with one of its answers, up to its end token, as the marks of a corpus have it."""
    chat = encoder.encode(conversation.whole(conversation.answers[answer]), last_only=True)
    return np.array(chat.ids[: chat.answers[-1][1]], dtype=np.int64)


def _ranked(conversation: Conversation, encoded: list[Ints]) -> RankedPrompt:
    scores = [np.nan if answer.score is None else answer.score for answer in conversation.answers]
    return RankedPrompt(
        prompt_id(conversation.prompt),
        conversation.labeller,
        tuple(encoded),
        np.array([answer.level for answer in conversation.answers], dtype=np.int64),
        np.array(scores, dtype=np.float64),
    )
