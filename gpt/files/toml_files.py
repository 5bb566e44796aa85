"""Read TOML files that a user or a stranger wrote: regular files only. Each fault is an error of one line."""

import tomllib
from pathlib import Path
from typing import Any

from gpt.errors import ConfigError, file_error
from gpt.files.regular import read_text

MAX_TOML_BYTES = 1 << 22
_MAX_DEPTH = 32


def read_toml(path: Path, *, kind: str) -> dict[str, Any]:
    """Return the tables of a TOML file. `kind` names what it should be, such as "recipe".

    ConfigError: it is missing, unreadable, too large, not TOML, or nested too deeply.
    """
    try:
        return parse_toml(read_text(path, max_bytes=MAX_TOML_BYTES))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such {kind} file") from None
    except OSError as error:
        raise file_error(error, f"{path} cannot be read: {(error.strerror or '').lower()}") from None
    except RecursionError:
        raise ConfigError(f"{path} is not valid TOML: its lists or tables are nested too deeply") from None
    except ValueError as error:  # also text that is not UTF-8, and an integer with more digits than Python reads
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def parse_toml(text: str) -> dict[str, Any]:
    """Return the tables of a TOML text.

    ValueError: it is not TOML. RecursionError: it is nested too deeply for functions that call themselves on tables.
    """
    table: dict[str, Any] = tomllib.loads(text)
    level: list[Any] = [table]
    for _ in range(_MAX_DEPTH):
        level = [item for holder in level for item in (holder.values() if isinstance(holder, dict) else holder)]
        level = [item for item in level if isinstance(item, (dict, list))]
        if not level:
            return table
    raise RecursionError
