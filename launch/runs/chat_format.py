"""How the conversations of a run become tokens: as its training corpus says, else as its tokenizer does."""

from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from data_prep.conversations.chat_format import ChatEncoder, ChatFormat, choose_format
from data_prep.conversations.config import ConversationsConfig
from data_prep.conversations.templates import ChatTemplate, find_template
from gpt.data.config import DataConfig
from gpt.errors import ConfigError
from gpt.token_files.corpus import describe_corpus
from launch.runs.imported_run import HUGGING_FACE


class ChattingRun(Protocol):
    """The facts of a run that decide its chat format; SavedRun has them."""

    @property
    def run_directory(self) -> Path: ...

    @property
    def data_config(self) -> DataConfig: ...

    @property
    def tokenizer_file(self) -> Path: ...


def chat_encoder(saved: ChattingRun) -> ChatEncoder:
    """The encoder of a run's conversations; a context manager. ConfigError: the template cannot be used."""
    chat = chat_format_of(saved)
    encoder = ChatEncoder(chat, saved.tokenizer_file)
    if chat.template is not None:
        try:
            encoder.check()
        except ConfigError:
            encoder.__exit__()
            raise
    return encoder


def chat_format_of(saved: ChattingRun) -> ChatFormat:
    """The format of the first training corpus of conversations, if its corpus.json is still there.

    Else the chat template of the tokenizer or of the import, ChatML if the tokenizer has its tokens, or plain text.
    """
    found = find_template(saved.tokenizer_file, None)
    companions = saved.run_directory / HUGGING_FACE
    if found is None and companions.is_dir():
        found = find_template(companions / "tokenizer.json", None)
    trained = _of_corpora(saved)
    if trained is not None and trained["format"] == "template":
        variables = found.variables if found is not None else ()
        return ChatFormat("template", ChatTemplate(str(trained["template"]), variables, "the template of corpus.json"))
    if trained is not None:
        return ChatFormat(trained["format"])
    if found is not None:
        return ChatFormat("template", found)
    return choose_format(ConversationsConfig("prompts"), saved.tokenizer_file)


def _of_corpora(saved: ChattingRun) -> dict[str, Any] | None:
    """The entry `chat` of the first training corpus that has a valid one."""
    for corpus in saved.data_config.train:
        with suppress(ConfigError):
            chat = (describe_corpus(Path(corpus.path)) or {}).get("chat")
            if isinstance(chat, dict) and _is_valid(chat):
                return chat
    return None


def _is_valid(chat: dict[str, Any]) -> bool:
    name = chat.get("format")
    return name in ("chatml", "plain") or (name == "template" and isinstance(chat.get("template"), str))
