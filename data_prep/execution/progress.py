"""Show the progress of each stage: a live bar on a terminal, elsewhere a line every few seconds."""

import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from data_prep.documents.counts import Counts
from data_prep.execution.workers import RunningJob

_LONG_S = 60.0  # name a task that takes longer: it may hang
_LIVE_S = 0.5


def say(console: Console, line: str) -> None:
    """Print a line. On a terminal it breaks between words, and paths stay whole, which rich would break too."""
    if console.is_terminal:
        width = max(1, console.width - 1)
        line = "\n".join(textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False))
    console.print(line, highlight=False, markup=False, soft_wrap=True)


class ProgressBars:
    """One bar a stage on the given console; without a terminal a line every `every_s` seconds."""

    def __init__(self, console: Console, *, every_s: float = 30.0) -> None:
        self.console = console
        self.every_s = every_s

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        say(self.console, line)

    @contextmanager
    def stage(
        self,
        name: str,
        *,
        n_tasks: int,
        n_done: int = 0,
        n_bytes: int = 0,
        longest: Callable[[], RunningJob | None] = lambda: None,
    ) -> Iterator["StageProgress"]:
        """Follow a stage of `n_tasks`, of which `n_done` were done before; the inputs of the others have `n_bytes`."""
        live = self.console.is_terminal
        width = max(8, min(30, self.console.width - 58))  # a narrow terminal has room for words
        room = self.console.width - 18 - width - len(f"{n_tasks}/{n_tasks} 0:00:00") - 5
        columns = (
            TextColumn("{task.description:<18}"),
            BarColumn(bar_width=width),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[said]}"),
        )
        follow = StageProgress(name, n_tasks=n_tasks, n_done=n_done, n_bytes=n_bytes, longest=longest)
        over = threading.Event()
        with Progress(*columns, console=self.console, disable=not live) as bars:
            bar = bars.add_task(name, total=n_tasks, completed=n_done, said="")

            def say() -> None:
                if live:
                    bars.update(bar, completed=follow.n_done, said=_fitting(follow.words(time_first=True), room))
                else:
                    self.console.print(follow.line(), highlight=False, markup=False)

            def tick() -> None:
                while not over.wait(_LIVE_S if live else self.every_s):
                    say()

            ticker = threading.Thread(target=tick, daemon=True)
            ticker.start()
            try:
                yield follow
            finally:
                over.set()
                ticker.join()
                if live:
                    say()
        if not live:
            self.console.print(follow.summary(), highlight=False, markup=False)


def _fitting(words: Sequence[str], room: int) -> str:
    """Join the first words that fit into so many columns: rich would shorten the bar and the numbers instead."""
    joined = [", ".join(words[:n]) for n in range(len(words) + 1)]
    return [text for text in joined if len(text) <= room or not text][-1]


class StageProgress:
    """Progress of a running stage, updated by the thread that works and read by the thread that shows it."""

    def __init__(
        self, name: str, *, n_tasks: int, n_done: int, n_bytes: int, longest: Callable[[], RunningJob | None]
    ) -> None:
        self.name, self.n_tasks, self.n_done = name, n_tasks, n_done
        self._n_before, self._n_here, self._n_others = n_done, 0, 0
        self._bytes, self._bytes_done = n_bytes, 0
        self._documents = 0
        self._longest = longest
        self._waiting = ""
        self._started = self._advanced = time.monotonic()

    def advance(self, counts: Sequence[Counts], n_bytes: int) -> None:
        """Count one finished task of this run with its counts; its inputs had `n_bytes`."""
        self._documents += counts[0].documents_in if counts else 0
        self._bytes_done += n_bytes
        self._n_here += 1
        self.n_done += 1
        self._advanced = time.monotonic()

    def advance_others(self, n: int, waiting: str) -> None:
        """Count `n` tasks that other shares finished; `waiting` says what this share waits for."""
        self._n_others += n
        self.n_done += n
        self._waiting = waiting

    def words(self, *, time_first: bool = False) -> list[str]:
        """Documents, documents a second, time left and the longest task, each where it is known.

        `time_first`: begin with the time left, since a terminal cuts off the end of a long line.
        """
        words = self._documents_words()
        left_s = self.left_s()
        if left_s is not None:
            words.insert(0 if time_first else len(words), f"{span(left_s)} left")
        busy = self._longest()
        if busy is not None and busy.elapsed_s > _LONG_S:
            words.append(f"longest: {busy.name}, for {span(busy.elapsed_s)} ({busy.where})")
        if self._waiting:
            words.append(self._waiting)
        return words

    def line(self) -> str:
        """One line of progress."""
        return ", ".join([f"{self.name}: {self.n_done:,} of {_tasks(self.n_tasks)}", *self.words()])

    def summary(self) -> str:
        """One line about the finished stage."""
        words = [f"{self.name}: {_tasks(self.n_tasks)}"]
        if self._n_before:
            words.append(f"{self._n_before:,} done before")
        if self._n_others:
            words.append(f"{self._n_others:,} by other shares")
        return ", ".join([*words, *self._documents_words(), f"{self._elapsed_s():.1f} s"])

    def left_s(self) -> float | None:
        """Seconds until this run's tasks are done at the rate so far, measured in bytes if known, else in tasks."""
        n_left = self.n_tasks - self._n_before - self._n_here - self._n_others
        if not self._n_here or not n_left or self._waiting:
            return None
        if self._bytes_done:
            return self._elapsed_s() * max(0, self._bytes - self._bytes_done) / self._bytes_done
        return self._elapsed_s() * n_left / self._n_here

    def _documents_words(self) -> list[str]:
        if not self._documents:
            return []
        rate = self._documents / max(self._advanced - self._started, 1e-3)
        return [f"{self._documents:,} documents", f"{rate:,.0f} documents/s"]

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started


def span(seconds: float) -> str:
    """Format a length of time in at most two units: 8 s, 3 min, 2 h 5 min, 4 d 3 h."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if 0 < seconds < 1:
        return "1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"


def _tasks(n: int) -> str:
    return "1 task" if n == 1 else f"{n:,} tasks"
