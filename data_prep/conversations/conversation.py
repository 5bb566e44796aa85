"""Define conversations: turns with roles, and the answers to the last turn; and their form as a document."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from data_prep.documents.shards import Document, content_id

Kind = Literal["demonstrations", "rankings", "prompts"]
Role = Literal["system", "user", "assistant"]
Compared = Literal["prompt", "conversation"]


class UnusableRecord(Exception):
    """A record, or a part of it, that gives no conversation: the drop's reason and what makes it precise."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Turn:
    """One message."""

    role: Role
    text: str

    @property
    def message(self) -> dict[str, str]:
        """The turn as chat templates and data sets have it."""
        return {"role": self.role, "content": self.text}


@dataclass(frozen=True)
class Answer:
    """An answer to a prompt. `level` ranks it among the prompt's answers: 0 is the worst, equal levels are ties."""

    text: str
    level: int = 0
    score: float | None = None  # as the source gives it
    model: str = ""


@dataclass(frozen=True)
class Conversation:
    """The turns before the answer, and the answers: none of a prompt, one of a demonstration, several of a ranking."""

    prompt: tuple[Turn, ...]
    answers: tuple[Answer, ...] = ()
    labeller: str = ""
    source_id: str = ""  # the record's own id

    def whole(self, answer: Answer) -> tuple[Turn, ...]:
        """The turns with one of the answers."""
        return (*self.prompt, Turn("assistant", answer.text))


def check_turns(turns: Sequence[Turn]) -> None:
    """Check the turns of a prompt: a system turn or none, then user and assistant in turn, and a user's turn last.

    UnusableRecord: `roles_do_not_alternate`, `empty_turn`, or `no_prompt`.
    """
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    if not spoken:
        raise UnusableRecord("no_prompt")
    for number, turn in enumerate(spoken):
        wanted = "assistant" if number % 2 else "user"
        if turn.role != wanted:
            raise UnusableRecord("roles_do_not_alternate", f"turn {number + 1} is of {turn.role}, not of {wanted}")
        if not turn.text.strip():
            raise UnusableRecord("empty_turn", f"turn {number + 1}, of {turn.role}, has no text")
    if spoken[-1].role != "user":
        raise UnusableRecord("roles_do_not_alternate", "two turns of assistant follow each other")


def normalised(text: str) -> str:
    """Return a text without the differences that do not make another prompt: width of letters, case and whitespace."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def prompt_id(turns: Sequence[Turn]) -> str:
    """Id of a prompt: a digest of its first user turn, normalised. All conversations that begin so share it.

    The split is drawn by this id (`parent_id` of the conversation's), so they are all in one split.
    """
    opening = next(turn.text for turn in turns if turn.role == "user")
    return content_id("prompt", normalised(opening).encode())


def as_document(conversation: Conversation, compared: Compared) -> Document:
    """Make the document that the stages pass on.

    Its text is compared with other texts by de-duplication and decontamination: the turns of the prompt, or all.
    """
    texts = [turn.text for turn in conversation.prompt]
    if compared == "conversation":
        texts += [answer.text for answer in conversation.answers]
    values = as_values(conversation)
    own = content_id("c", repr(values).encode()).partition(":")[2]
    return Document(f"{prompt_id(conversation.prompt)}#{own}", "\n\n".join(texts), {"conversation": values})


def as_values(conversation: Conversation) -> dict[str, Any]:
    """Return JSON values, from which `conversation_of` makes the conversation again."""
    answers = [[one.text, one.level, one.score, one.model] for one in conversation.answers]
    return {
        "prompt": [[turn.role, turn.text] for turn in conversation.prompt],
        "answers": answers,
        "labeller": conversation.labeller,
        "source_id": conversation.source_id,
    }


def conversation_of(document: Document) -> Conversation:
    """Return the conversation of a document that `as_document` made."""
    values = document.metadata["conversation"]
    return Conversation(
        tuple(Turn(role, text) for role, text in values["prompt"]),
        tuple(Answer(*fields) for fields in values["answers"]),
        values["labeller"],
        values["source_id"],
    )


def with_answers(conversation: Conversation, answers: Sequence[Answer]) -> Conversation:
    """Return the conversation with other answers, whose levels are renumbered from 0."""
    return replace(conversation, answers=renumbered(answers))


def renumbered(answers: Sequence[Answer]) -> tuple[Answer, ...]:
    """Return the answers with the levels 0, 1, ... in the same order."""
    levels = {level: number for number, level in enumerate(sorted({answer.level for answer in answers}))}
    return tuple(replace(answer, level=levels[answer.level]) for answer in answers)
