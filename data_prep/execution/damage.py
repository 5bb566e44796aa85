"""Compare the inputs of tasks with the digests that their writers recorded, so that no task uses a damaged file.

An input of one task is compared by that task's worker, just before the stage's function reads it. Inputs that several
tasks share are compared once, before the first of these tasks starts.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from data_prep.execution.files import describe_file
from gpt.errors import ConfigError

T = TypeVar("T")
_MAX_DAMAGE = 3  # how often a file may be damaged in one run
MAX_OWN = 32  # inputs that one worker compares alone


@dataclass(frozen=True)
class WrittenFile:
    """A file and the digest of its content when it was written, or read for the first time."""

    path: Path
    digest: str


@dataclass(frozen=True)
class DamagedInput:
    """A worker's answer for a task that it did not do, because this input is damaged."""

    path: Path


class DamagedInputError(Exception):
    """Files of the work folder are not as their tasks wrote them; those tasks must run again."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(f"{paths[0]}: its content is not what its task wrote")
        self.paths = paths


def find_damage(files: Sequence[WrittenFile]) -> Path | None:
    """Return the first file that is missing or whose content has changed, or None; reads every file."""
    return next((file.path for file in files if not _is_intact(file)), None)


def damaged_path(file: WrittenFile) -> Path | None:
    """Return the file's path if it is missing or its content has changed, else None; reads the file."""
    return None if _is_intact(file) else file.path


def divide(
    inputs: Sequence[Sequence[WrittenFile]], reads: Sequence[Sequence[WrittenFile]]
) -> tuple[list[WrittenFile], list[tuple[WrittenFile, ...]]]:
    """Divide the inputs of tasks into those to compare before the tasks, and those of each task alone.

    Further files that tasks read belong to the first group. Equal lists must be the same object: comparing long ones
    takes time.
    """
    tasks_of = Counter(map(id, inputs))
    lists = {id(files): files for files in inputs}
    n_tasks: Counter[Path] = Counter()
    for key, files in lists.items():
        for file in files:
            n_tasks[file.path] += tasks_of[key] if len(files) <= MAX_OWN else 2
    shared = {file.path: file for files in lists.values() for file in files if n_tasks[file.path] > 1}
    alone = {key: tuple(file for file in files if file.path not in shared) for key, files in lists.items()}
    shared |= {file.path: file for files in {id(files): files for files in reads}.values() for file in files}
    return list(shared.values()), [alone[id(files)] for files in inputs]


def report_damage(paths: Sequence[Path], folder: Path, *, recorded: Collection[Path] = ()) -> None:
    """Raise DamagedInputError if there are damaged files in a work folder. They stay: other shares may read them.

    ConfigError: a file of the user, or of another corpus, whose run `recorded` the digest.
    """
    for path in paths:
        if path.is_relative_to(folder):
            continue
        if path in recorded:
            raise ConfigError(f"{path} is not as the run of its corpus wrote it. Prepare that corpus again")
        raise ConfigError(
            f"{path} has changed since this run first read it. Change no input during a run; if nobody did, its "
            "disk may be failing. Run the same command again"
        )
    if paths:
        raise DamagedInputError(paths)


def repeat_until_whole(steps: Callable[[], T], start_again: Callable[[Sequence[Path], str], None]) -> T:
    """Call `steps` until it finds no damaged file.

    Before each further call, pass the damaged files and a line for the user to `start_again`.

    ConfigError: a file is damaged again and again.
    """
    met: Counter[Path] = Counter()
    while True:
        try:
            return steps()
        except DamagedInputError as error:
            met[error.paths[0]] += 1
            if met[error.paths[0]] == _MAX_DAMAGE:
                raise ConfigError(f"{error}, {_MAX_DAMAGE} times. Check the disk and the memory") from None
            start_again(error.paths, f"{error}. It is made again")


def _is_intact(file: WrittenFile) -> bool:
    try:
        return bool(describe_file(file.path)["digest"] == file.digest)
    except FileNotFoundError:
        return False
