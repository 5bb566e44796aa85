"""The rendering stage: give each conversation its token ids, what is learned of them, and the marks of rankings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from data_prep.conversations.chat_format import ChatEncoder, ChatFormat
from data_prep.conversations.conversation import (
    Answer,
    Conversation,
    Kind,
    UnusableRecord,
    as_values,
    conversation_of,
    with_answers,
)
from data_prep.conversations.ranking import check_ranking
from data_prep.documents.counts import Tally
from data_prep.documents.quarantine import Quarantine
from data_prep.documents.shards import Document, read_shard, write_shard
from data_prep.documents.traces import write_trace
from data_prep.execution.tasks import Stage, TaskResult


@dataclass(frozen=True)
class RenderTask:
    """Settings of a rendering task, as in the [conversations] section."""

    kind: Kind
    chat: ChatFormat
    learn: Literal["all", "last"]
    max_prompt_tokens: int | None
    max_tokens: int | None
    max_document_tokens: int | None = None


@dataclass(frozen=True)
class Tokens:
    """The ids of a document. `learned`: (start, end) of the learned ones. `marks`: (position, 1 + level) of the last
    token of each answer of a ranking."""

    ids: list[int]
    learned: list[tuple[int, int]]
    marks: list[tuple[int, int]]


def render_shard(config: RenderTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: (shard, tokenizer's files) to (the shard with token ids in the metadata, trace).

    Counts: `fitting completions` of rankings, and `render`. Facts: the longest document and conversation in tokens, and
    the sums of tokens, learned tokens, answers and pairs of another level.
    """
    sums = dict.fromkeys(("tokens", "learned", "answers", "pairs", "longest_document", "longest_conversation"), 0)
    with (
        write_shard(outputs[0]) as write,
        write_trace(outputs[1]) as trace,
        Quarantine(RENDER.name, inputs, outputs) as quarantine,
        ChatEncoder(config.chat, inputs[1]) as encoder,
    ):
        fitting, rendering = Tally("fitting completions", trace), Tally(RENDER.name, trace)

        def render(document: Document) -> Document | UnusableRecord:
            try:
                return _render(document, config, encoder, fitting, sums)
            except UnusableRecord as error:
                return error

        for document, rendered in quarantine.each(read_shard(inputs[0]), render, rendering):
            if isinstance(rendered, UnusableRecord):
                rendering.drop(rendered.reason, document.n_bytes, document.id, detail=rendered.detail)
            else:
                rendering.keep(document.n_bytes, document.n_bytes)
                write(rendered)
    counts = [fitting.counts()] if config.kind == "rankings" else []
    return TaskResult([*counts, rendering.counts()], sums)


def tokens_of(document: Document) -> Tokens:
    """Return the tokens of a document that this stage wrote."""
    values = document.metadata
    return Tokens(values["ids"], values["learned"], values["marks"])


def _render(
    document: Document, config: RenderTask, encoder: ChatEncoder, fitting: Tally, sums: dict[str, int]
) -> Document:
    conversation = conversation_of(document)
    if config.kind == "prompts":
        tokens, longest = Tokens(encoder.prompt(conversation.prompt), [], []), 0
        _check_prompt(len(tokens.ids), config)
    elif config.kind == "demonstrations":
        tokens = _demonstration(conversation, config, encoder)
        longest = len(tokens.ids)
        _check_length(longest, config)
    else:
        conversation, tokens, longest = _ranking(document, conversation, config, encoder, fitting)
    levels = [answer.level for answer in conversation.answers]
    sums["tokens"] += len(tokens.ids)
    sums["learned"] += sum(end - start for start, end in tokens.learned)
    sums["answers"] += len(levels)
    sums["pairs"] += sum(a != b for i, a in enumerate(levels) for b in levels[:i])
    sums["longest_document"] = max(sums["longest_document"], len(tokens.ids))
    sums["longest_conversation"] = max(sums["longest_conversation"], longest)
    values: dict[str, Any] = {"conversation": as_values(conversation)}
    values |= {"ids": tokens.ids, "learned": tokens.learned, "marks": tokens.marks}
    return replace(document, metadata=values)


def _demonstration(conversation: Conversation, config: RenderTask, encoder: ChatEncoder) -> Tokens:
    chat = encoder.encode(conversation.whole(conversation.answers[0]), last_only=config.learn == "last")
    _check_prompt(chat.answers[-1][0], config)
    return Tokens(chat.ids[: chat.answers[-1][1]], chat.answers, [])


def _ranking(
    document: Document, conversation: Conversation, config: RenderTask, encoder: ChatEncoder, fitting: Tally
) -> tuple[Conversation, Tokens, int]:
    """Encode the prompt with each of its answers, and leave out the answers that are too long."""
    encoded: list[tuple[Answer, list[int], int]] = []
    too_long: list[tuple[int, int]] = []
    for number, answer in enumerate(conversation.answers):
        chat = encoder.encode(conversation.whole(answer), last_only=True)
        start, end = chat.answers[-1]
        _check_prompt(start, config)
        if config.max_tokens is not None and end > config.max_tokens:
            too_long.append((number, end))
        else:
            encoded.append((answer, chat.ids[:end], start))
    kept = with_answers(conversation, [answer for answer, _, _ in encoded])
    try:
        check_ranking(kept.answers, len(conversation.answers))
    except UnusableRecord as error:
        raise UnusableRecord("too_long", f"without the long completions, {error}") if too_long else error from None
    n_whole = sum(len(ids) for _, ids, _ in encoded)
    if config.max_document_tokens is not None and n_whole > config.max_document_tokens:
        raise UnusableRecord("ranking_too_long", f"{n_whole} tokens in {len(encoded)} completions")
    for number, n_tokens in too_long:
        n_bytes = len(conversation.answers[number].text.encode())
        fitting.drop("too_long", n_bytes, document.id, detail=f"completion {number + 1}: {n_tokens} tokens")
    return kept, _joined(kept.answers, encoded, fitting), max(len(ids) for _, ids, _ in encoded)


def _joined(answers: Sequence[Answer], encoded: Sequence[tuple[Answer, list[int], int]], fitting: Tally) -> Tokens:
    tokens = Tokens([], [], [])
    for answer, (_, ids, start) in zip(answers, encoded, strict=True):
        first = len(tokens.ids)
        tokens.ids.extend(ids)
        tokens.learned.append((first + start, first + len(ids)))
        tokens.marks.append((first + len(ids) - 1, 1 + answer.level))
        n_bytes = len(answer.text.encode())
        fitting.keep(n_bytes, n_bytes)
    return tokens


def _check_prompt(n_tokens: int, config: RenderTask) -> None:
    limit = config.max_prompt_tokens
    if limit is not None and n_tokens > limit:
        raise UnusableRecord("prompt_too_long", f"{n_tokens} tokens")


def _check_length(n_tokens: int, config: RenderTask) -> None:
    if config.max_tokens is not None and n_tokens > config.max_tokens:
        raise UnusableRecord("too_long", f"{n_tokens} tokens")


RENDER = Stage("render", render_shard)
