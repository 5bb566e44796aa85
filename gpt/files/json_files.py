"""Read JSON files and files of JSON lines that others wrote: regular files only. Each fault is an error of one line."""

from pathlib import Path
from typing import Any

from gpt.errors import ConfigError, file_error
from gpt.files.json_text import decode_json
from gpt.files.regular import read_bytes

MAX_JSON_BYTES = 1 << 24  # settings and indexes have far less; a parsed file takes up to 30 times its size in memory


def read_json(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Return the value in a JSON file. ConfigError: it is missing, unreadable, too large, not UTF-8 or not JSON."""
    try:
        data = read_bytes(path, max_bytes=max_bytes)
    except OSError as error:
        raise file_error(error, f"{path} cannot be read: {(error.strerror or '').lower()}") from None
    return parse_json(data, where=str(path))


def read_json_object(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Return the object in a JSON file. ConfigError: as `read_json`, or the file holds another value."""
    value = read_json(path, max_bytes=max_bytes)
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is not a JSON object")
    return value


def parse_json(data: bytes, *, where: str) -> Any:
    """Return the value of a JSON text in UTF-8. ConfigError: it is not JSON, or it is nested too deeply."""
    try:
        return decode_json(data.decode("utf-8"))
    except ValueError as error:  # also an integer with more digits than Python reads
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise ConfigError(f"{where} is not JSON: {reason}") from None


def read_json_lines(path: Path, *, option: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Return (its place, for errors; the object) of each line that is not blank. `option` names the file in errors.

    ConfigError: the file cannot be read, or a line is no JSON object; names the first such line.
    """
    name, found = f"{option} {path}".lstrip(), []
    try:
        data = read_bytes(path)
    except OSError as error:
        raise file_error(error, f"{name} cannot be read: {(error.strerror or '').lower()}") from None
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            where = f"{name}, line {number}"
            value = parse_json(line, where=where)
            if not isinstance(value, dict):
                raise ConfigError(f"{where} must be a JSON object")
            found.append((where, value))
    return found
