"""What the commands that print tables share: the console, and how many workers `--workers` means; prints nothing."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

from gpt.errors import ConfigError


def table_console() -> Console:
    """Standard output: ":x:" in an id is no picture, and a pipe, which has no width, is wide enough for the rows."""
    console = Console(emoji=False)
    return console if console.is_terminal else Console(width=140, emoji=False)


def worker_count(workers: int | None) -> int:
    """`--workers N`, or one for each core that this process may use. ConfigError for less than 1."""
    n_workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if n_workers < 1:
        raise ConfigError(f"--workers {n_workers} must be at least 1")
    return n_workers


def printable(text: str) -> str:
    """Without what would steer the terminal: a run's files may come from anywhere."""
    return "".join(character if character.isprintable() else "�" for character in " ".join(text.split()))


@contextmanager
def progress_bar(title: str, *, total: int) -> Iterator[Callable[[str], None]]:
    """A function to call with the name of each tensor done."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)

        def advance(_: str) -> None:
            progress.advance(task)
            if progress.finished:
                progress.update(task, description="reading back and comparing")

        yield advance
