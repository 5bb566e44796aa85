"""Shows how far each stage is: a live bar on a terminal, one plain line a stage elsewhere; never changes the work."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from data_prep.counts import Counts

Advance = Callable[[Sequence[Counts]], None]


class Progress:
    """One bar or line a stage, on the given console."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def stage(self, name: str, n_tasks: int, *, done_before: int) -> Iterator[Advance]:
        """Follow a stage of `n_tasks`; call what is yielded with each finished task's counts."""
        started = time.perf_counter()
        documents = 0
        columns = (
            TextColumn("{task.description:<18}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[documents]:>12}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        live = self.console.is_terminal
        with Bars(*columns, console=self.console, disable=not live) as bars:
            bar = bars.add_task(name, total=n_tasks, completed=done_before, documents="")

            def advance(counts: Sequence[Counts]) -> None:
                nonlocal documents
                documents += counts[0].documents_in if counts else 0
                bars.update(bar, advance=1, documents=f"{documents:,} docs" if documents else "")

            yield advance
        if not live:
            elapsed_s = time.perf_counter() - started
            was = f", {done_before} done before" if done_before else ""
            found = f", {documents:,} documents" if documents else ""
            tasks = "1 task" if n_tasks == 1 else f"{n_tasks} tasks"
            self.console.print(f"{name}: {tasks}{was}{found}, {elapsed_s:.1f} s", highlight=False)
