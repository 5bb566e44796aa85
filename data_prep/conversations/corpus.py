"""The steps of conversations that differ from those of texts: rendering, token ids with streams, and side files."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.conversations.chat_format import ChatEncoder, ChatFormat, choose_format, describe_format
from data_prep.conversations.config import ConversationsConfig
from data_prep.conversations.render import RENDER, RenderTask
from data_prep.conversations.templates import template_files
from data_prep.conversations.tokens import RANKINGS, STREAMS, TOKENS, RankingsTask, TokensTask
from data_prep.corpus.split import SplitConfig
from data_prep.execution.shard_runs import ShardRun, Shards
from data_prep.execution.tasks import FinishedTask, Task
from gpt.tokenizer.tokenizers import load_tokenizer, tokenizer_files

_FORMATS = {
    "template": "the tokenizer's chat template, {name}",
    "chatml": "ChatML, with the tokenizer's <|im_start|> and <|im_end|>",
    "plain": "plain text, with System:, User: and Assistant:, and the end-of-document token after each answer",
}


@dataclass(frozen=True)
class TokenizedConversations:
    """The tasks that wrote the ids of each shard, and the files with each stream's values."""

    finished: list[FinishedTask]
    ids: tuple[Path, ...]  # (ids, rows) of every shard in turn
    streams: dict[str, tuple[Path, ...]]  # stream: (values, rows) of every shard in turn
    lines: tuple[Path, ...]  # (rows, lines of rankings) of every shard in turn


def describe_choice(chat: ChatFormat) -> str:
    """Say in one line how roles become tokens."""
    name = "" if chat.template is None else chat.template.name
    return f"conversations.format: {_FORMATS[chat.name].format(name=name)}"


def render_conversations(run: ShardRun, config: ConversationsConfig, tokenizer: Path, shards: Shards) -> Shards:
    """Give all conversations their token ids."""
    chat = choose_format(config, tokenizer)
    run.workspace.say(describe_choice(chat))
    if chat.template is not None:  # a template that moves must not make the tasks run again
        chat = replace(chat, template=replace(chat.template, name="the chat template"))
    limits = config.max_prompt_tokens, config.max_tokens, config.max_document_tokens
    task = RenderTask(config.kind, chat, config.learn, *limits)
    return run.map(RENDER, task, shards, shared_inputs=tuple(reversed(tokenizer_files(tokenizer))))


def tokenize_conversations(
    run: ShardRun, config: ConversationsConfig, tokenizer: Path, split: SplitConfig, shards: Shards
) -> TokenizedConversations:
    """Write the ids of rendered conversations and their streams in the order of the corpus, a task a shard."""
    names = tuple(STREAMS[config.kind])
    folder = run.workspace.folder / TOKENS.name
    task = TokensTask(split, config.kind, load_tokenizer(tokenizer).vocab_size)
    outputs = {
        name: tuple(folder / f"{name}.{ending}" for ending in ("tokens", "npy", "jsonl", *names)) for name in shards
    }
    tasks = [Task(task, (path,), outputs[name]) for name, path in shards.items()]
    finished = run.tasks(TOKENS, tasks)
    made = list(outputs.values())
    return TokenizedConversations(
        finished,
        tuple(path for files in made for path in files[:2]),
        {name: tuple(path for files in made for path in (files[3 + i], files[1])) for i, name in enumerate(names)},
        tuple(path for files in made for path in files[1:3]),
    )


def write_side_files(
    run: ShardRun, config: ConversationsConfig, tokenized: TokenizedConversations, prefixes: Mapping[str, str]
) -> dict[str, Path]:
    """Write a line for each ranking of a split; return the files by split, none of other kinds of corpora."""
    if config.kind != "rankings":
        return {}
    folder = run.workspace.folder / RANKINGS.name
    files = {split: folder / f"{prefix}_rankings.jsonl" for split, prefix in prefixes.items()}
    run.tasks(
        RANKINGS,
        [Task(RankingsTask(split == "validation"), tokenized.lines, (path,)) for split, path in files.items()],
    )
    return files


def describe_chat(config: ConversationsConfig, tokenizer: Path) -> dict[str, Any]:
    """Describe the kind of the corpus and its chat format, for corpus.json."""
    chat = choose_format(config, tokenizer)
    with ChatEncoder(chat, tokenizer) as encoder:
        return {"kind": config.kind, **describe_format(chat, encoder.end_ids)}


def companions_of(config: ConversationsConfig, tokenizer: Path) -> dict[str, Path]:
    """The files of the chat template, by the names under which a corpus has them next to its tokenizer."""
    chat = choose_format(config, tokenizer)
    return {} if chat.template is None else template_files(tokenizer, chat.template)


def describe_side_file(path: Path) -> dict[str, Any]:
    """Name, bytes and digest of a side file, for corpus.json."""
    data = path.read_bytes()
    return {"name": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def sum_of_facts(facts: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Sum the facts of rendering over its tasks; the largest of the longest ones."""
    keys = dict.fromkeys(key for about in facts for key in about)
    return {key: (max if key.startswith("longest") else sum)(about[key] for about in facts) for key in keys}
