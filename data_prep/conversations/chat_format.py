"""Turn conversations into token ids by a chat format: a tokenizer's own template, ChatML, or plain text.

The ids before an answer are those of the prompt alone, so a model continues in generation what it has learned.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_prep.conversations.config import ConversationsConfig
from data_prep.conversations.conversation import Turn, UnusableRecord
from data_prep.conversations.templates import ChatTemplate, TemplateRenderer, find_template
from gpt.errors import ConfigError
from gpt.tokenizer.marked_text import MarkedTextEncoder, special_names
from gpt.tokenizer.tokenizers import Tokenizer, load_tokenizer

_START, _END = "<|im_start|>", "<|im_end|>"
_PLAIN = {"system": "System", "user": "User", "assistant": "Assistant"}
_PROBE = (Turn("user", "Say one word."), Turn("assistant", "Word"))


@dataclass(frozen=True)
class ChatFormat:
    """How roles become tokens: `template` with its source, `chatml` (special tokens), or `plain` (words and ends)."""

    name: Literal["template", "chatml", "plain"]
    template: ChatTemplate | None = None


@dataclass(frozen=True)
class EncodedChat:
    """Token ids of a conversation, and each turn of the assistant in them: (first, end), its end token included."""

    ids: list[int]
    answers: list[tuple[int, int]]


def choose_format(config: ConversationsConfig, tokenizer: Path) -> ChatFormat:
    """Return the format that the recipe asks for, or the first that the tokenizer has.

    ConfigError: the tokenizer lacks what the format needs, or a model would not learn where its answer ends.
    """
    template = None
    if config.format in ("auto", "template"):
        template = find_template(tokenizer, config.template)
        if template is None and config.format == "template":
            raise ConfigError(
                f"conversations.format = 'template' is invalid: there is no chat_template.jinja and no template in "
                f"tokenizer_config.json next to {tokenizer}. Set conversations.template, or use 'chatml' or 'plain'"
            )
    if template is not None:
        found = ChatFormat("template", template)
        with ChatEncoder(found, tokenizer) as encoder:
            encoder.check()
        return found
    has_marks = {_START, _END} <= set(special_names(load_tokenizer(tokenizer)).values())
    if config.format == "chatml" and not has_marks:
        raise ConfigError(
            f"conversations.format = 'chatml' is invalid: {tokenizer} has no special tokens {_START} and {_END}. "
            "Use 'plain'"
        )
    return ChatFormat("chatml" if has_marks and config.format != "plain" else "plain")


class ChatEncoder:
    """Encodes conversations in one format.

    with ChatEncoder(format, tokenizer) as encoder:
        encoder.encode(turns)
    """

    def __init__(self, chat: ChatFormat, tokenizer: Path) -> None:
        self.format = chat
        self.tokenizer: Tokenizer = load_tokenizer(tokenizer)
        self.special_names = special_names(self.tokenizer)
        self._ids = {name: i for i, name in self.special_names.items()}
        self._renderer = None if chat.template is None else TemplateRenderer(chat.template)
        self._marked = None if chat.template is None else MarkedTextEncoder(tokenizer)

    def __enter__(self) -> "ChatEncoder":
        return self

    def __exit__(self, *_: object) -> None:
        if self._renderer is not None:
            self._renderer.close()

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        if self.format.name == "plain":
            return (self.tokenizer.end_of_document_id,)
        if self.format.name == "chatml":
            return (self._ids[_END],)
        chat = self.encode(_PROBE)
        return (chat.ids[chat.answers[-1][1] - 1],)

    def check(self) -> None:
        """ConfigError: the template refuses a simple conversation, or ends no answer with a special token."""
        assert self.format.template is not None
        name = self.format.template.name
        try:
            self.encode(_PROBE)
            self.prompt(_PROBE[:1])
        except UnusableRecord as error:
            raise ConfigError(
                f"{name}: not a chat template that can be used: {error.detail or error.reason}. Set "
                "conversations.template, or conversations.format = 'plain'"
            ) from None

    def encode(self, turns: Sequence[Turn], *, last_only: bool = False) -> EncodedChat:
        """Encode turns, up to the end token of the last turn of the assistant.

        `last_only`: find only its last turn. Some templates write an earlier answer in another way than the last, such
        as without its thoughts. UnusableRecord: the template refuses the turns, or does not show which tokens are
        those of an answer, or a text contains the name of a special token.
        """
        if self._renderer is not None:
            return self._with_template(turns, last_only=last_only)
        ids: list[int] = []
        answers: list[tuple[int, int]] = []
        for number, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            before = turns[answers_end(turns, number) : number]
            ids += self._between(before, is_first=not answers)
            start = len(ids)
            ids += self._answer(turn.text)
            answers.append((start, len(ids)))
        return EncodedChat(ids, answers[-1:] if last_only else answers)

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Encode turns up to where the assistant's answer to them begins. UnusableRecord: as `encode`."""
        if self._renderer is not None:
            self._check_texts(turns)
            assert self._marked is not None
            return self._marked.encode(self._renderer.render(turns, for_answer=True).text)
        last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
        before = self.encode(turns[: last + 1]).ids if last >= 0 else []
        return before + self._between(turns[last + 1 :], is_first=last < 0)

    def _between(self, turns: Sequence[Turn], *, is_first: bool) -> list[int]:
        """The ids from the end of one answer to the beginning of the next."""
        if self.format.name == "plain":
            text = "" if is_first else "\n\n"
            text += "".join(f"{_PLAIN[turn.role]}: {turn.text}\n\n" for turn in turns)
            return self.tokenizer.encode(f"{text}{_PLAIN['assistant']}:")
        ids = [] if is_first else self.tokenizer.encode("\n")
        for turn in turns:
            ids += [self._ids[_START], *self.tokenizer.encode(f"{turn.role}\n{turn.text}"), self._ids[_END]]
            ids += self.tokenizer.encode("\n")
        return [*ids, self._ids[_START], *self.tokenizer.encode("assistant\n")]

    def _answer(self, text: str) -> list[int]:
        if self.format.name == "plain":
            return [*self.tokenizer.encode(f" {text}"), self.tokenizer.end_of_document_id]
        return [*self.tokenizer.encode(text), self._ids[_END]]

    def _with_template(self, turns: Sequence[Turn], *, last_only: bool) -> EncodedChat:
        assert self._renderer is not None
        assert self._marked is not None
        self._check_texts(turns)
        rendered = self._renderer.render(turns)
        n_answers = sum(turn.role == "assistant" for turn in turns)
        if len(rendered.answers) != n_answers:
            raise UnusableRecord("template_hides_answers", "it does not mark each turn of the assistant")
        wanted = rendered.answers[-1:] if last_only else rendered.answers
        spans = [self._to_end(rendered.text, start, end) for start, end in wanted]
        if not spans:
            return EncodedChat([], [])
        if not self._marked.joins:
            return _by_offsets(self._marked, rendered.text[: spans[-1][1]], spans)
        ids: list[int] = []
        answers, at = [], 0
        for start, end in spans:
            ids += self._marked.encode(rendered.text[at:start])
            first = len(ids)
            ids += self._marked.encode(rendered.text[start:end])
            answers.append((first, len(ids)))
            at = end
        return EncodedChat(ids, answers)

    def _to_end(self, text: str, start: int, end: int) -> tuple[int, int]:
        """Move the end of a turn of the assistant behind its end token: the last special one in it, or the next."""
        if start < 0:
            raise UnusableRecord("template_changes_turns", "it writes an answer in another way when a turn follows")
        names = self._ids
        inside = max((text.rfind(name, start, end) + len(name) for name in names if name in text[start:end]), default=0)
        if inside:
            return start, inside
        following = next((name for name in names if text.startswith(name, end)), None)
        if following is None:
            raise UnusableRecord(
                "missing_end_token", "no special token ends the answer, so a model cannot learn to stop"
            )
        return start, end + len(following)

    def _check_texts(self, turns: Sequence[Turn]) -> None:
        """A text could end its own turn with the name of a special token, which the template's result cannot show."""
        assert self._marked is not None
        for turn in turns:
            if (name := self._marked.find_special(turn.text)) is not None:
                raise UnusableRecord("special_token_in_text", f"{name} in a turn of {turn.role}")


def answers_end(turns: Sequence[Turn], number: int) -> int:
    """The index behind the last turn of the assistant before `number`."""
    return max((i + 1 for i, turn in enumerate(turns[:number]) if turn.role == "assistant"), default=0)


def _by_offsets(encoder: MarkedTextEncoder, text: str, spans: Sequence[tuple[int, int]]) -> EncodedChat:
    """Encode a text whose parts would give other ids; find the answers by the characters of each token."""
    ids, offsets = encoder.encode_spans(text)
    answers: list[tuple[int, int]] = []
    for start, end in spans:
        inside = [i for i, (first, last) in enumerate(offsets) if first < end and last > start]
        answers.append((inside[0], inside[-1] + 1))
    return EncodedChat(ids, answers)


def describe_format(chat: ChatFormat, end_ids: Sequence[int]) -> dict[str, Any]:
    """Return the format for corpus.json: what generation needs to write prompts in it and to stop."""
    source = None if chat.template is None else chat.template.source
    return {"format": chat.name, "template": source, "end_ids": list(end_ids)}
