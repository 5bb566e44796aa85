"""What the pipeline asks of its work folder, whether that does the tasks or only plans them; does nothing itself."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from data_prep.execution.tasks import Finished, Stage, Task


class Work(Protocol):
    """What a pipeline asks of the work folder: of `Workspace`, which does the tasks, or of a plan, which only looks."""

    folder: Path
    stubs: Path  # the folder for what stands for remote inputs

    def digests(self, paths: Sequence[Path]) -> list[str]:
        """Digest of each source file's content."""
        ...

    def run(self, stage: Stage, tasks: Sequence[Task]) -> list[Finished]:
        """Do the tasks that are not in the manifest; the entries of all, in the order of the tasks."""
        ...

    def note(self, name: str, text: str) -> None:
        """Keep a small file about the run in the folder, whole or not at all."""
        ...

    def find(self, steps: Callable[[], dict[str, Path]], shards: dict[str, Path], *, size: float) -> dict[str, Path]:
        """What `steps` returns: a file for each of the shards.

        Those steps depend on what earlier ones find. A plan that does not know it takes stand-ins for the files, with
        `size` times a shard's bytes.
        """
        ...

    def alone(self, function: Callable[[], None]) -> None:
        """Call `function`, which writes outside the folder: in one share of a run only, and in no plan."""
        ...

    def no_more_tasks(self) -> None:
        """Say that no `run` follows; what a plan is for ends here."""
        ...
