"""The progress bar of a conversion, on standard error and only where that is a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress


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
