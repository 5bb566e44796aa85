"""Terminal helpers of the commands: the console for tables, printable text, a progress bar, the `--workers` option."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import Progress
from rich.segment import Segment

from gpt.errors import ConfigError, escaped, one_line


class SafeConsole(Console):
    """A console that escapes control characters in the text that it prints: names and notes may be a stranger's."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(escaped(segment.text), segment.style)


def table_console() -> Console:
    """Standard output without emoji codes (":x:" may occur in an id), and wide enough for whole rows in a pipe."""
    console = SafeConsole(emoji=False)
    return console if console.is_terminal else SafeConsole(width=140, emoji=False)


def printable(text: str) -> str:
    """Return one line without control characters, which are escaped: a run's files may come from anywhere."""
    return one_line(" ".join(text.split()))


@contextmanager
def progress_bar(title: str, *, total: int) -> Iterator[Callable[[str], None]]:
    """A bar on standard error; yields a function to call with the name of each tensor that is done."""
    console = SafeConsole(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)

        def advance(_: str) -> None:
            progress.advance(task)
            if progress.finished:
                progress.update(task, description="reading back and comparing")

        yield advance


def worker_count(workers: int | None) -> int:
    """`--workers N`, or by default one for each core that this process may use. ConfigError below 1."""
    n_workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if n_workers < 1:
        raise ConfigError(f"--workers {n_workers} is invalid: must be at least 1")
    return n_workers
