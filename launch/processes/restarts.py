"""Decide whether a failed run is restarted and after which pause, and describe the restart. Starts no process."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from gpt.errors import ConfigError
from gpt.files.atomic import replace_file
from gpt.files.json_rules import Fields, Whole, read_checked_json
from gpt.files.json_text import decode_json
from gpt.files.regular import open_regular

MAX_STARTS_WITHOUT_PROGRESS = 4  # in a row: a run that fails this often at the same step will fail again
_PROGRESS = Fields({"furthest": Whole(), "starts": Whole()})
OUTAGE_S = 3600.0  # how long to wait until someone frees space on a disk or restarts a file server
MAX_OUTAGE_PAUSE_S = 60.0
PAUSE_GROWTH = 4  # factor from pause to pause: 15, 60, 240 s outlast the reboot of a switch or a file server


@dataclass(frozen=True)
class Restart:
    """This start is restart `count` of at most `most`. `cause`: why the last start failed; torchrun does not say."""

    count: int
    most: int
    cause: str = ""

    def __str__(self) -> str:
        return f"restart {self.count} of {self.most}" + (f" ({self.cause})" if self.cause else "")


@dataclass(frozen=True)
class RestartPolicy:
    """Restart at most `most` times, and give up earlier if the run makes no progress.

    `last_step` returns the furthest step of the run. `pause_s`: the first pause before a restart without progress.
    `outage_s`: how long starts that meet a fault of the machine, such as a full disk, are tried again.
    """

    most: int = 0
    last_step: Callable[[], int] = int
    pause_s: float = 0.0
    outage_s: float = 0.0


ONCE = RestartPolicy()


@dataclass(frozen=True)
class RunProgress:
    """The furthest step of a run, and how many starts in a row got no further."""

    furthest: int
    starts: int = 0

    def after(self, step: int) -> "RunProgress":
        """The progress after a start that ended at `step`."""
        return RunProgress(step) if step > self.furthest else RunProgress(self.furthest, self.starts + 1)

    def pause_s(self, first_s: float) -> float:
        """The pause before the next start: none after progress, else longer each time."""
        return first_s * PAUSE_GROWTH ** (self.starts - 1) if self.starts else 0.0

    @property
    def is_stuck(self) -> bool:
        return self.starts >= MAX_STARTS_WITHOUT_PROGRESS

    @property
    def why_stuck(self) -> str:
        where = f"no further than step {self.furthest:,}" if self.furthest else "to no step at all"
        return f"{self.starts} starts in a row got {where}. Fix the cause, then start the run again"


@dataclass(frozen=True)
class Outage:
    """A time in which each start meets a fault of the machine. These starts are no restarts: a limit in time applies.

    `began_at` and `now`: on the clock of time.monotonic(); None outside of an outage.
    """

    limit_s: float
    began_at: float | None = None
    now: float = 0.0
    last_pause_s: float = 0.0

    def after(self, *, is_fault: bool, now: float) -> "Outage":
        """The outage after one more start, which met a fault or did not."""
        if not is_fault or not self.limit_s:
            return Outage(self.limit_s)
        return Outage(self.limit_s, now if self.began_at is None else self.began_at, now, self.pause_s)

    @property
    def pause_s(self) -> float:
        """The pause before the next start: 0 outside of an outage and at its limit, else longer each time."""
        if self.began_at is None or self.is_over:
            return 0.0
        return min(MAX_OUTAGE_PAUSE_S, 2 * self.last_pause_s or self.limit_s / 1000)

    @property
    def is_over(self) -> bool:
        """Whether the limit is reached."""
        return self.began_at is not None and self.now - self.began_at >= self.limit_s

    def __str__(self) -> str:
        lasted = f"{self.now - (self.began_at or self.now):,.0f} of at most {self.limit_s:,.0f} s"
        again = f"; the run starts again in {self.pause_s:.0f} s" if self.pause_s else ""
        return f"such faults for {lasted}{again}"


def last_logged_step(run_directory: Path) -> int:
    """The step of the last whole line of metrics.jsonl, 0 if there is none: about how far the run is."""
    try:
        with open_regular(run_directory / "metrics.jsonl") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
            lines = file.read().splitlines(keepends=True)
    except (OSError, ConfigError):
        return 0
    for line in reversed(lines):
        try:
            step = decode_json(line)["step"] if line.endswith(b"\n") else None
        except (ValueError, TypeError, KeyError):
            continue
        if isinstance(step, int) and 0 <= step < 2**62:
            return step
    return 0


def count_start(
    run_directory: Path, restart: Restart | None, *, reached: int, requeues: int = 0, is_after_stop: bool = False
) -> RunProgress:
    """Count this start in a file of the run directory. Rank 0 calls it at every start, before it trains.

    `reached`: the furthest step of the run so far. `requeues`: how often Slurm has started this job again.
    `is_after_stop`: a signal ended the job's start before, so a lack of progress is no failure. Our own launcher counts
    in its memory and gives a `cause`; then nothing is written. ConfigError if the restarts of torchrun or Slurm make no
    progress; further ones then end at once.
    """
    if restart is not None and restart.cause:
        return RunProgress(reached)
    file = run_directory / ".progress.json"
    progress = RunProgress(reached)
    if restart is not None or requeues:
        before = RunProgress(0)
        with suppress(OSError, ConfigError):  # the first start failed before it could write the file
            table = read_checked_json(file, _PROGRESS, max_bytes=1 << 16)
            before = RunProgress(table["furthest"], table["starts"])
        is_excused = is_after_stop and restart is None and reached <= before.furthest
        progress = before if is_excused else before.after(reached)
    replace_file(file, json.dumps(asdict(progress)))
    if progress.is_stuck:
        raise ConfigError(f"{restart or f'start {requeues + 1} of the job'}: {progress.why_stuck}")
    return progress


def describe_resume(restart: Restart, *, reached: int, step: int) -> str:
    """One line for the operator: what happened, the step the run resumes from, and how many steps are repeated."""
    if not step:
        return f"{restart}: there is no checkpoint, so all steps are repeated"
    again = f"{reached - step:,} steps are" if reached - step != 1 else "1 step is"
    return f"{restart}: resumed from step {step:,}, " + (f"{again} repeated" if reached > step else "no step is lost")


def describe_unsaved(reached: int, *, step: int) -> str:
    """One line for the operator of a run that is continued from `step`, though it had reached a later one."""
    saved = f"the newest checkpoint is of step {step:,}" if step else "it has no checkpoint"
    return f"the run had reached step ~{reached:,}, but {saved}; set checkpoint.every_tokens to lose fewer steps"
