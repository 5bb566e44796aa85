"""Render conversations with the chat template of a tokenizer, a stranger's program, in a child process with limits."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.conversations.conversation import Turn, UnusableRecord
from data_prep.execution.child_frames import FAILED, SIZE
from data_prep.execution.child_process import Child
from gpt.errors import ConfigError, file_error
from gpt.files.json_files import read_json_object
from gpt.files.json_text import decode_json
from gpt.files.regular import read_text

MAX_MEMORY_BYTES, MAX_CPU_S, MAX_CHARACTERS = 256 << 20, 5.0, 4 << 20
_LIMITS = f"it needs more than {MAX_CPU_S:g} s of processor time or {MAX_MEMORY_BYTES >> 20} MiB of memory"
_SILENCE_S = 12 * MAX_CPU_S
_MAX_TEMPLATE_BYTES = 1 << 20
TEMPLATE_FILE, SETTINGS_FILE = "chat_template.jinja", "tokenizer_config.json"


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template: its source, the special tokens that it may name, as pairs, and the file for messages."""

    source: str
    variables: tuple[tuple[str, str], ...]
    name: str


@dataclass(frozen=True)
class TemplateText:
    """A rendered conversation, and where the turns of the assistant are in it: (start, end) in characters.

    (-1, -1): the template writes this turn in another way when others follow it.
    """

    text: str
    answers: tuple[tuple[int, int], ...]


def find_template(tokenizer: Path, given: Path | None) -> ChatTemplate | None:
    """Read a chat template: the given file, or that of the tokenizer; None if there is none.

    ConfigError: the given file has none, or a file cannot be read.
    """
    if given is not None:
        if not given.is_file():
            raise ConfigError(f"conversations.template = '{given}' is invalid: no such file")
        found = _read_template(given, _folders(tokenizer))
        if found is None:
            raise ConfigError(f"conversations.template = '{given}' is invalid: it has no chat_template")
        return found
    for folder in _folders(tokenizer):
        for path in (folder / TEMPLATE_FILE, folder / SETTINGS_FILE):
            if path.is_file() and (found := _read_template(path, [folder])) is not None:
                return found
    return None


def template_files(tokenizer: Path, template: ChatTemplate) -> dict[str, Path]:
    """The files of a template that is in use, by the names under which a tokenizer has them next to it."""
    path = Path(template.name)
    settings = path if path.suffix == ".json" else _settings_file([path.parent, *_folders(tokenizer)])
    files = {SETTINGS_FILE: settings, TEMPLATE_FILE: None if path == settings else path}
    return {name: file for name, file in files.items() if file is not None}


def _folders(tokenizer: Path) -> list[Path]:
    """The folders that may have a tokenizer's template: its own, and in a run that was imported, `hugging_face`."""
    folder = tokenizer if tokenizer.is_dir() else tokenizer.parent
    return [folder, folder.parent / "hugging_face"] if folder.name == "tokenizer" else [folder]


def _settings_file(folders: Sequence[Path]) -> Path | None:
    return next((path for folder in folders if (path := folder / SETTINGS_FILE).is_file()), None)


def _read_template(path: Path, folders: Sequence[Path]) -> ChatTemplate | None:
    """Read a template, and its special tokens from the tokenizer_config.json next to it or in `folders`."""
    settings_file = path if path.suffix == ".json" else _settings_file([path.parent, *folders])
    settings = {} if settings_file is None else read_json_object(settings_file)
    source: Any = settings.get("chat_template")
    if path.suffix != ".json":
        source = _read_source(path)
    if isinstance(source, list):  # several by name
        named = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}
        source = named.get("default")
    if not isinstance(source, str):
        return None
    names = {key: _name(value) for key, value in settings.items() if key.endswith("_token")}
    variables = tuple(sorted((key, value) for key, value in names.items() if value is not None))
    return ChatTemplate(source, variables, str(path))


def _read_source(path: Path) -> str:
    try:
        return read_text(path, max_bytes=_MAX_TEMPLATE_BYTES)
    except OSError as error:
        raise file_error(error, f"{path} cannot be read: {(error.strerror or '').lower()}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a chat template that can be used: it is not UTF-8") from None


def _name(value: Any) -> str | None:
    """The text of a special token, which tokenizer_config.json has as text or as a table."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


class TemplateRenderer:
    """Renders conversations with one template.

    with TemplateRenderer(template) as renderer:
        renderer.render(turns)

    ConfigError: the template cannot be compiled.
    """

    def __init__(self, template: ChatTemplate) -> None:
        limits = {"max_memory_bytes": MAX_MEMORY_BYTES, "max_cpu_s": MAX_CPU_S, "max_characters": MAX_CHARACTERS}
        about = {"template": template.source, "variables": dict(template.variables), "name": template.name}
        self._facts = about | limits
        self._child: Child | None = None

    def __enter__(self) -> "TemplateRenderer":
        self._child = self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child process."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _start(self) -> Child:
        try:
            return Child("data_prep.conversations.template_child", self._facts)
        except RuntimeError as error:
            raise ConfigError(
                f"{self._facts['name']}: not a chat template that can be used: {_LIMITS} ({error})"
            ) from None

    def render(self, turns: Sequence[Turn], *, for_answer: bool = False) -> TemplateText:
        """Render turns; `for_answer`: up to where the assistant's answer begins.

        UnusableRecord: the template refuses these turns (`template_refused`), or exceeds its limits
        (`template_over_limits`).
        """
        if self._child is None:
            self._child = self._start()
        asked = json.dumps({"messages": [turn.message for turn in turns], "for_answer": for_answer}).encode()
        self._child.send([SIZE.pack(len(asked)), asked])
        frame = self._child.receive(_SILENCE_S)
        if frame is None:
            self._child.end()
            self._child = None
            raise UnusableRecord("template_over_limits", _LIMITS)
        if frame[0] == FAILED:
            raise UnusableRecord("template_refused", frame[1])
        text, spans = decode_json(frame[1])
        return TemplateText(text, tuple((start, end) for start, end in spans))
