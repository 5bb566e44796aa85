"""How far a run is, by what it left in its directory; loads no checkpoint."""

from contextlib import suppress
from pathlib import Path

from launch.processes.restarts import last_logged_step
from parallel.checkpoint.folders import list_checkpoints, published_step


def furthest_step(run_directory: Path) -> int:
    """About how far the run is: its newest checkpoint's step, or a later one that it has logged."""
    saved = list[Path]()
    with suppress(OSError):
        saved = list_checkpoints(run_directory / "checkpoints")
    return max([last_logged_step(run_directory), *map(published_step, saved[:1])])
