"""The child process that renders a stranger's chat template for templates.py, in Jinja's sandbox and within limits.

Jinja's sandbox keeps a template from Python's objects. It limits neither time nor memory, and its authors do not call
it a perfect protection. This process therefore has limits of both, holds no secrets, and gives only text back.
"""

import json
import os
import re
import signal
import sys
from datetime import date
from itertools import pairwise
from typing import Any, BinaryIO

from data_prep.execution.child_frames import FAILED, MISTAKE, READY, TEXT, limit_memory, read_text, reply
from gpt.errors import ConfigError, import_extra
from gpt.files.json_text import decode_json

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_ANSWER = "assistant"
_TODAY = date(2024, 7, 26)  # Llama's templates name it where they are given no date


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Compile the template of the first message, then render the messages of each further one.

    The answer is JSON: [text, [[start, end] of each turn of the assistant, in characters of the text]].
    """
    facts = decode_json(read_text(requests))
    try:
        environment = _environment()  # all imports, which the limits need not hold
    except ConfigError as error:
        reply(replies, MISTAKE, str(error))
        return
    limit_memory(facts["max_memory_bytes"])
    signal.setitimer(signal.ITIMER_PROF, facts["max_cpu_s"])  # ends the process
    try:
        template = _Template(environment, facts["template"], facts["variables"])
    except Exception as error:  # of Jinja, which computes with constants here: it may be any
        reply(replies, MISTAKE, f"{facts['name']}: not a chat template that can be used ({_line(error)})")
        return
    signal.setitimer(signal.ITIMER_PROF, 0)
    reply(replies, READY)
    while True:
        asked = decode_json(read_text(requests))
        signal.setitimer(signal.ITIMER_PROF, facts["max_cpu_s"])
        try:
            text, spans = template.render(asked["messages"], for_answer=asked["for_answer"])
            if len(text) > facts["max_characters"]:
                raise ValueError(f"its text has more than {facts['max_characters']} characters")
            answer = TEXT, json.dumps([text, spans])
        except Exception as error:
            answer = FAILED, _line(error)
        signal.setitimer(signal.ITIMER_PROF, 0)
        reply(replies, *answer)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _environment() -> Any:
    """Jinja's sandbox with the functions, filters and the tag of transformers' templates, but nothing random."""
    sandbox: Any = import_extra("jinja2.sandbox", extra="data")
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation_tag()]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _TODAY.strftime
    del environment.globals["lipsum"], environment.filters["random"]  # equal messages must give equal texts
    return environment


class _Template:
    """A compiled template with the variables that transformers gives it."""

    def __init__(self, environment: Any, source: str, variables: dict[str, str]) -> None:
        self._has_tags = bool(_GENERATION.search(source))
        self._compiled = environment.from_string(source)
        self._variables = variables

    def render(self, messages: list[dict[str, str]], *, for_answer: bool) -> tuple[str, list[list[int]]]:
        """Render messages; `for_answer`: up to where the assistant's answer begins, and without spans."""
        if for_answer:
            return self._text(messages, add_generation_prompt=True), []
        if self._has_tags:
            return self._tagged(messages)
        text, spans = self._text(messages), []
        for number, message in enumerate(messages):
            if message["role"] == _ANSWER:
                spans.append(self._span(messages, number, text))
        return text, spans

    def _span(self, messages: list[dict[str, str]], number: int, text: str) -> list[int]:
        """Find a turn of the assistant by rendering the turns before it, and up to it.

        Some templates end a conversation with one more token, so only what both renderings share is of the turn.
        """
        before = self._text(messages[:number], add_generation_prompt=True)
        upto = text if number == len(messages) - 1 else self._text(messages[: number + 1])
        end = _shared(text, upto)
        if not upto.startswith(before) or messages[number]["content"].strip() not in text[len(before) : end]:
            return [-1, -1]  # the template writes a turn in another way when others follow it
        return [len(before), end]

    def _tagged(self, messages: list[dict[str, str]]) -> tuple[str, list[list[int]]]:
        """Render with marks at the tags, and take them out again. No message has a mark, so none can forge one."""
        number = 0
        while (start := f"\ue000{number}\ue001") in json.dumps(messages, ensure_ascii=False):
            number += 1
        end = f"\ue000{number}\ue002"
        parts = re.split(f"({start}|{end})", self._text(messages, answer_start=start, answer_end=end))
        text, spans, n_characters = [], list[list[int]](), 0
        for part in parts:
            if part == start:
                spans.append([n_characters, n_characters])
            elif part == end:
                spans[-1][1] = n_characters
            else:
                text.append(part)
                n_characters += len(part)
        whole = "".join(text)
        return whole, self._by_turn(messages, whole, spans)

    def _by_turn(self, messages: list[dict[str, str]], text: str, spans: list[list[int]]) -> list[list[int]]:
        """Join the spans of a turn that has several with nothing but whitespace between them."""
        numbers = [number for number, message in enumerate(messages) if message["role"] == _ANSWER]
        if len(spans) <= len(numbers):
            return spans
        starts = [_shared(text, self._text(messages[:number])) for number in numbers]
        turns = list[list[int]]()
        for start, stop in zip(starts, [*starts[1:], len(text) + 1], strict=True):
            own = [span for span in spans if start <= span[0] < stop]
            if not own or any(text[a[1] : b[0]].strip() for a, b in pairwise(own)):
                return spans  # of unknown turns
            turns.append([own[0][0], own[-1][1]])
        return turns

    def _text(self, messages: list[dict[str, str]], **more: Any) -> str:
        given = {"add_generation_prompt": False, "tools": None, "documents": None, **self._variables, **more}
        return str(self._compiled.render(messages=messages, **given))


def _generation_tag() -> Any:
    """The tag of transformers' templates around the text of the assistant: here it puts marks around it."""
    extension: Any = import_extra("jinja2.ext", extra="data").Extension
    nodes: Any = import_extra("jinja2.nodes", extra="data")

    class Generation(extension):  # type: ignore[misc]
        tags = frozenset(("generation",))

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)

            def mark(name: str) -> Any:
                return nodes.Output([nodes.Name(name, "load")]).set_lineno(line)

            return [mark("answer_start"), *body, mark("answer_end")]

    return Generation


def _shared(one: str, other: str) -> int:
    """The number of characters with which both texts begin."""
    return len(os.path.commonprefix([one, other]))  # noqa: RUF071  it compares any texts


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _refuse(message: object) -> None:
    raise ValueError(f"{message}")


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
