"""Files that commands write where the user says: `--json FILE` with its one meaning, and pages and pictures."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from gpt.errors import ConfigError, file_error
from gpt.files.atomic import open_replacement, replace_file
from gpt.files.json_text import escaped_json, without_nan

STANDARD_OUTPUT, NO_FILE = "-", ""  # NO_FILE: --json as a switch, which doctor and data audit once had

Emit = Callable[[Any], None]


def add_json_option(parser: argparse.ArgumentParser, what: str, *, was_switch: bool = False) -> None:
    """Add `--json FILE`. With `was_switch`, `--json` alone is standard output, as in earlier versions."""
    switch: dict[str, Any] = {"nargs": "?", "const": NO_FILE} if was_switch else {}
    parser.add_argument("--json", metavar="FILE", help=f"write {what} to FILE; - is standard output", **switch)


@contextmanager
def json_destination(path: str | None, *, indent: int | None = 2) -> Iterator[Emit]:
    """Yield a function that writes a value as JSON: to the file `path`, or to standard output for "-".

    Each call appends one JSON text and a line end. The file appears when the block ends without an error. With "-" all
    other output of the block goes to standard error. Without a path the function does nothing. ConfigError, before
    any work: the file cannot be written.
    """
    if path in (STANDARD_OUTPUT, NO_FILE):
        if path == NO_FILE:
            print("--json without FILE is standard output. Write --json -", file=sys.stderr)
        output = sys.stdout
        with redirect_stdout(sys.stderr):
            yield lambda value: _print(_text(value, indent), output)
        return
    with ExitStack() as stack:
        if path is None:
            yield lambda value: None
            return
        check_destination("--json", path)
        with _named("--json", Path(path)):
            file = stack.enter_context(open_replacement(Path(path)))
        yield lambda value: _write(_text(value, indent), file)
    print(f"wrote {path}")


def write_page(option: str, path: Path, text: str) -> None:
    """Write a page or picture that `option` asks for. ConfigError: the file cannot be written."""
    check_destination(option, path)
    with _named(option, path):
        replace_file(path, text)


def check_destination(option: str, path: str | Path | None) -> None:
    """ConfigError if the file that `option` asks for cannot be written."""
    if path is None or str(path) in (STANDARD_OUTPUT, NO_FILE):
        return
    folder = Path(path).absolute().parent
    fault = "it is a folder" if Path(path).is_dir() else "no such folder" if not folder.is_dir() else ""
    if fault or not os.access(folder, os.W_OK):
        raise ConfigError(f"{option} {path} cannot be written: {fault or 'its folder is not writable'}")


@contextmanager
def _named(option: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise file_error(error, f"{option} {path} cannot be written: {(error.strerror or '').lower()}") from None


def _text(value: Any, indent: int | None) -> str:
    return json.dumps(without_nan(value), indent=indent, allow_nan=False, ensure_ascii=indent is not None) + "\n"


def _print(text: str, output: TextIO) -> None:
    output.write(escaped_json(text) if output.isatty() else text)
    output.flush()


def _write(text: str, file: BinaryIO) -> None:
    file.write(text.encode())


def check_output(path: Path) -> None:
    """Raise ConfigError if the result cannot be written to `path`, before any work is done."""
    if path.is_dir():
        raise ConfigError(f"--output {path} is a folder. Give a file in it.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        reason = "is not writable" if path.parent.is_dir() else "does not exist"
        raise ConfigError(f"--output {path} is invalid: the folder {path.parent} {reason}.")
