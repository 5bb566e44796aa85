"""Which items of a task occur in the training text, as `triaxial prepare overlap` found; searches no text itself."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpt.errors import ConfigError


@dataclass(frozen=True)
class Overlap:
    """Of each set of evaluation examples, by its name: whether example i is dirty. From one examples.jsonl."""

    path: Path
    dirty: Mapping[str, tuple[bool, ...]]

    def of(self, task: str, *, items: int) -> tuple[bool, ...] | None:
        """Marks of a task's items; None where no set has its name.

        ConfigError: the set has another number of examples than the task has `items`, so that it is not the same split.
        """
        marks = self.dirty.get(task)
        if marks is not None and len(marks) != items:
            raise ConfigError(
                f"--clean-subset {self.path}: the set '{task}' has {len(marks):,} examples, the task {items:,} items; "
                "a set must consist of the one file that the task asks about, whole and in its order"
            )
        return marks


def read_overlap(path: Path, tasks: list[str]) -> Overlap:
    """Read the examples.jsonl that `triaxial prepare overlap` wrote.

    ConfigError: it cannot be read, is another kind of file, a set has gaps, or none has the name of one of `tasks`.
    """
    found: dict[str, dict[int, bool]] = {}
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                _take(line, found, where=f"--clean-subset {path} line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--clean-subset {path} cannot be read: {error}") from None
    dirty = {}
    for name, marks in found.items():
        if set(marks) != set(range(len(marks))):
            raise ConfigError(
                f"--clean-subset {path}: the set '{name}' is not whole; run `triaxial prepare overlap` again"
            )
        dirty[name] = tuple(marks[i] for i in range(len(marks)))
    if not set(dirty) & set(tasks):
        names = ", ".join(f"'{name}'" for name in sorted(dirty)[:8]) or "no set"
        raise ConfigError(
            f"--clean-subset {path} holds {names}, and none of these is asked ({', '.join(sorted(tasks)[:4])} ...); "
            "give each set of the overlap recipe the name of its task"
        )
    return Overlap(path, dirty)


def _take(line: str, found: dict[str, dict[int, bool]], *, where: str) -> None:
    try:
        row = json.loads(line)
        name, index, dirty = row["set"], row["index"], row["dirty"]
        if not (isinstance(name, str) and isinstance(index, int) and isinstance(dirty, bool)):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{where} is no line of an examples.jsonl that `triaxial prepare overlap` writes") from None
    found.setdefault(name, {})[index] = dirty
