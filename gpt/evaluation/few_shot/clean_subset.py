"""Read which items of a task occur in the training text, from the results of `triaxial prepare overlap`."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpt.errors import ConfigError, file_error
from gpt.files.json_text import decode_json
from gpt.files.regular import open_regular


@dataclass(frozen=True)
class Overlap:
    """For each evaluation set, by name: whether its example i is dirty (in the training text). From one
    examples.jsonl."""

    path: Path
    dirty: Mapping[str, tuple[bool, ...]]

    def of(self, task: str, *, items: int) -> tuple[bool, ...] | None:
        """Return whether each of a task's items is dirty; None if no set has the task's name.

        ConfigError: the set has not as many examples as the task has `items`, so it is another split.
        """
        marks = self.dirty.get(task)
        if marks is not None and len(marks) != items:
            raise ConfigError(
                f"--clean-subset {self.path}: the set '{task}' has {len(marks):,} examples, but the task has {items:,} "
                "items. Make the set from the task's file: whole, alone and in the same order."
            )
        return marks


def read_overlap(path: Path, tasks: list[str]) -> Overlap:
    """Read the examples.jsonl that `triaxial prepare overlap` wrote.

    ConfigError: the file cannot be read or is of another kind, a set has gaps, or no set has the name of one of
    `tasks`.
    """
    found: dict[str, dict[int, bool]] = {}
    try:
        with open_regular(path) as data, io.TextIOWrapper(data, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                _take(line, found, where=f"--clean-subset {path} line {number}")
    except OSError as error:
        raise file_error(error, f"--clean-subset {path} cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"--clean-subset {path} cannot be read: {error}") from None
    dirty = {}
    for name, marks in found.items():
        if set(marks) != set(range(len(marks))):
            raise ConfigError(
                f"--clean-subset {path}: the set '{name}' is incomplete. Run `triaxial prepare overlap` again."
            )
        dirty[name] = tuple(marks[i] for i in range(len(marks)))
    if not set(dirty) & set(tasks):
        names = ", ".join(f"'{name}'" for name in sorted(dirty)[:8]) or "no set"
        raise ConfigError(
            f"--clean-subset {path} has {names}, and no task has such a name ({', '.join(sorted(tasks)[:4])} ...). "
            "Give each set of the overlap recipe the name of its task."
        )
    return Overlap(path, dirty)


def _take(line: str, found: dict[str, dict[int, bool]], *, where: str) -> None:
    try:
        row = decode_json(line)
        name, index, dirty = row["set"], row["index"], row["dirty"]
        if not (isinstance(name, str) and isinstance(index, int) and isinstance(dirty, bool)):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{where} is not a line of an examples.jsonl by `triaxial prepare overlap`.") from None
    found.setdefault(name, {})[index] = dirty
