"""Terminal helpers of the commands: the console for tables, printable text, progress, the `--workers` option."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Column
from rich.text import Text

from gpt.errors import ConfigError, escaped, one_line
from gpt.telemetry.screen import human_duration

FIRST_LINE_S = 10.0  # without a terminal: the first line of a piece of work, and the time from one to the next
EVERY_S = 30.0


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


class WorkProgress:
    """Progress of one piece of work after another. `bars`: a terminal's, None: plain lines, which start late.

    Work that takes less than FIRST_LINE_S therefore prints nothing into a pipe.
    """

    def __init__(self, bars: Progress | None, *, is_shown: bool = True) -> None:
        self._bars, self._is_shown = bars, is_shown
        self._title, self._done, self._total = "", 0.0, 0.0
        self._started_at = self._line_at = time.monotonic()
        self._bar: TaskID | None = None

    def start(self, title: str, *, total: float | None = None) -> None:
        """Start the next piece of work. Its total, in any unit, may become known later."""
        if self._bars is not None and self._bar is not None and not self._total:
            self._bars.remove_task(self._bar)  # it would seem to run on
        self._title, self._done, self._total = title, 0.0, total or 0.0
        self._started_at = self._line_at = time.monotonic()
        self._line_at += FIRST_LINE_S - EVERY_S
        if self._bars is not None:
            self._bar = self._bars.add_task(title, total=total)

    def advance(self, amount: float = 1.0) -> None:
        self.update(self._done + amount)

    def update(self, done: float, *, total: float | None = None) -> None:
        """Report how much is done in all, and the total if it has changed."""
        self._done, self._total = done, self._total if total is None else total
        if self._bars is not None and self._bar is not None:
            self._bars.update(self._bar, completed=done, total=total)
            return
        now = time.monotonic()
        if self._is_shown and now - self._line_at >= EVERY_S:
            self._line_at = now
            print(self._line(now - self._started_at), file=sys.stderr, flush=True)

    def _line(self, elapsed_s: float) -> str:
        """Return a plain line: the share that is done, the time since the start, and the time left at this speed."""
        line = f"{one_line(self._title)}: {human_duration(elapsed_s)}"
        if not self._total or not self._done:
            return line
        left_s = max(0.0, self._total - self._done) * elapsed_s / self._done
        return f"{line}, {min(1.0, self._done / self._total):.0%} done, about {human_duration(left_s)} left"


@contextmanager
def work_progress(*, shows: bool = True) -> Iterator[WorkProgress]:
    """Report progress on standard error, since piped output has results only: a bar that vanishes on a terminal,
    elsewhere a plain line now and then. `shows`: whether this process reports; ranks of a layout leave it to the first.
    """
    console = SafeConsole(stderr=True)
    if not (shows and console.is_terminal) or console.is_dumb_terminal:
        yield WorkProgress(None, is_shown=shows)
        return
    bar_width = max(6, min(40, console.width - 60))  # a narrow terminal needs the room for words
    title = Column(no_wrap=True, max_width=max(1, console.width - bar_width - 28))  # what the other columns leave
    columns = (TextColumn("{task.description}", markup=False, table_column=title), BarColumn(bar_width=bar_width))
    with Progress(
        *columns, TaskProgressColumn(), TimeElapsedColumn(), _TimeLeft(), console=console, transient=True
    ) as bars:
        yield WorkProgress(bars)


class _TimeLeft(TimeRemainingColumn):
    """The time left at the speed so far, or nothing while that is unknown."""

    def render(self, task: Task) -> Text:
        return Text() if task.time_remaining is None else Text.assemble(super().render(task), " left")


@contextmanager
def tensor_progress(title: str, *, total: int) -> Iterator[Callable[[str], None]]:
    """Progress of a conversion; yields a function to call with the name of each tensor that is done.

    After the last tensor, the files are read back and compared.
    """
    with work_progress() as progress:
        progress.start(title, total=total)
        done = 0

        def advance(_: str) -> None:
            nonlocal done
            done += 1
            progress.advance()
            if done == total:
                progress.start("reading back and comparing")

        yield advance


def worker_count(workers: int | None) -> int:
    """`--workers N`, or by default one for each core that this process may use. ConfigError below 1."""
    n_workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if n_workers < 1:
        raise ConfigError(f"--workers {n_workers} is invalid: must be at least 1")
    return n_workers
