"""Whether a run that failed is started again, and how it is told; starts no process itself."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from gpt.errors import ConfigError
from gpt.files.atomic import replace_file

MOST_STARTS_WITHOUT_PROGRESS = 4  # in a row: what fails so often at the same step fails for a reason
LONGER = 4  # times the pause before, each time: 15, 60, 240 s outlast a switch or a file server that is restarted


@dataclass(frozen=True)
class Restart:
    """This start is the `count`-th of at most `most` in place of one that failed; torchrun names no `cause`."""

    count: int
    most: int
    cause: str = ""

    def __str__(self) -> str:
        return f"restart {self.count} of {self.most}" + (f" ({self.cause})" if self.cause else "")


@dataclass(frozen=True)
class RestartPolicy:
    """At most so many restarts; `last_step` says how far the run is, so that one which gets nowhere is given up, and
    before that started again after pauses: `pause_s` the first time."""

    most: int = 0
    last_step: Callable[[], int] = int
    pause_s: float = 0.0


ONCE = RestartPolicy()


@dataclass(frozen=True)
class Progress:
    """The furthest step of a run, and how many starts in a row got no further."""

    furthest: int
    starts: int = 0

    def after(self, step: int) -> "Progress":
        """A start ended at `step`."""
        return Progress(step) if step > self.furthest else Progress(self.furthest, self.starts + 1)

    def pause_s(self, first_s: float) -> float:
        """Before the next start: none after one that got further, else longer each time."""
        return first_s * LONGER ** (self.starts - 1) if self.starts else 0.0

    @property
    def is_stuck(self) -> bool:
        return self.starts >= MOST_STARTS_WITHOUT_PROGRESS

    @property
    def why_stuck(self) -> str:
        where = f"no further than step {self.furthest:,}" if self.furthest else "to no step at all"
        return f"{self.starts} starts in a row got {where}; mend the cause, then start the run again"


def last_logged_step(run_directory: Path) -> int:
    """The step of the last whole line of metrics.jsonl, 0 when there is none: about how far the run is."""
    try:
        with (run_directory / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
            lines = file.read().splitlines(keepends=True)
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            step = json.loads(line)["step"] if line.endswith(b"\n") else None
        except (ValueError, TypeError, KeyError):
            continue
        if isinstance(step, int):
            return step
    return 0


def count_start(run_directory: Path, restart: Restart | None, *, reached: int) -> Progress:
    """What our own launcher does in its memory, for torchrun: rank 0 calls it at every start, before it trains.

    ConfigError when torchrun's restarts get nowhere; with that the next ones end at once.
    """
    if restart is not None and restart.cause:
        return Progress(reached)
    file = run_directory / ".progress.json"
    progress = Progress(reached)
    if restart is not None:
        try:
            progress = Progress(**json.loads(file.read_text(encoding="utf-8"))).after(reached)
        except (OSError, ValueError, TypeError):  # no earlier start came so far
            progress = Progress(0).after(reached)
    replace_file(file, json.dumps(asdict(progress)))
    if progress.is_stuck:
        raise ConfigError(f"{restart}: {progress.why_stuck}")
    return progress


def how_it_resumed(restart: Restart, *, reached: int, step: int) -> str:
    """One line for the operator: what happened, from where the run goes on, and what that costs."""
    if not step:
        return f"{restart}: there is no checkpoint, so all steps are taken again"
    again = f"{reached - step:,} steps are" if reached - step != 1 else "1 step is"
    return f"{restart}: resumed from step {step:,}, " + (
        f"{again} taken again" if reached > step else "no step is lost"
    )
