"""Record the time of a run, phase by phase, in RUN/ledger.jsonl. goodput.py adds it up.

Every rank has a ledger, so that the loop is the same on all ranks, but only that of the main rank has a file. Nothing
here communicates or waits, and a ledger that cannot be written does not stop the run. A killed process loses the time
since its last row.
"""

import json
import math
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from gpt.files.machine import boot_id

# The names of spans. A part of the start-up is "start_up/PART".
PHASES = (
    "start_up",  # from the start of the process to its first step
    "data",  # waiting for a batch
    "training",
    "evaluation",
    "rollouts",  # responses that the policy learns from
    "scoring",  # of them, by reward, reference and value models
    "sampling",  # texts for people to read
    "saving",  # only the time for which training stops
    "waiting_for_save",  # until an earlier background save has finished
    "rewinding",
    "shutdown",
    "other",  # between spans
)
IMPORTS, PREPARING = "start_up/imports", "start_up/preparing"
MAX_S_BETWEEN_ROWS = 60.0


class TimeLedger:
    """Counts the seconds of this process by phase. The phases add up to the age of the process.

    Time outside of spans counts as "start_up/preparing" until the first span that does not belong to the start-up, and
    as "other" from then on. Time before the construction is "start_up/imports".

    `path` is None on all ranks except the main one. The file is opened at the first row; its folder must exist by then.
    `started_at` is on the clock of time.monotonic(); None takes the start of the process from the kernel. Use it as a
    context manager: leaving it, also by an error, writes the last row.
    """

    def __init__(
        self, path: Path | None, *, started_at: float | None = None, world_size: int = 1, restart_count: int = 0
    ) -> None:
        now = time.monotonic()
        self.path = path
        self.started_at = process_started_at() if started_at is None else started_at
        self.seconds = {IMPORTS: now - self.started_at}
        self.step = self.tokens = self.take = 0
        self.from_step: int | None = None  # until `resume` sets it
        self._counted_to = now
        self._phases = [PREPARING]  # the open spans, innermost last; the first one is never closed
        self._process = {
            "process": secrets.token_hex(4),
            "host": socket.gethostname(),
            "boot": boot_id(),
            "restart_count": restart_count,
            "world_size": world_size,
        }
        self._next_row_at = math.inf  # until the first row is written
        self._file: int | None = None
        self._whole = False  # whether the file certainly ends with a complete line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.write()
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self.path = None

    @contextmanager
    def span(self, phase: str) -> Iterator[None]:
        """Count the time inside as `phase`. In nested spans, time counts for the innermost one."""
        assert phase.partition("/")[0] in PHASES, phase
        self._count()
        if not phase.startswith("start_up") and self._phases[0] == PREPARING:
            self._phases[0] = "other"
        self._phases.append(phase)
        try:
            yield
        finally:
            self._count()
            self._phases.pop()
            if self.path is not None and phase not in ("data", "training") and self._counted_to >= self._next_row_at:
                self.write()  # after each step there is step_done

    def resume(self, *, step: int, tokens: int, rewound: bool = False) -> None:
        """Note that training continues from `step`: once before the first step, and with `rewound` after each rewind.

        Steps after `step`, of this process or an earlier one, will be repeated.
        """
        if rewound:
            self.write()
            self.take += 1
        self.step = self.from_step = step
        self.tokens = tokens
        self.write()

    def shut_down(self) -> None:
        """Count time outside of spans as "shutdown" from now on."""
        self._count()
        self._phases[0] = "shutdown"

    def step_done(self, *, step: int, tokens: int) -> None:
        """Note a finished step. Call it after each step, outside of its spans.

        Writes a row after the first step. Later rows are about a thousandth of the process's age apart, and at most a
        minute. Between rows it costs nothing.
        """
        first = self.step == self.from_step
        self.step, self.tokens = step, tokens
        if self.path is not None and (first or time.monotonic() >= self._next_row_at):
            self.write()

    def write(self, *, step: int | None = None, tokens: int | None = None) -> None:
        """Append a row: at a log point, after a save, at the end. None: step and tokens of the last call."""
        self.step = self.step if step is None else step
        self.tokens = self.tokens if tokens is None else tokens
        if self.path is None:
            return
        elapsed_s = self._count()
        self._next_row_at = self._counted_to + min(MAX_S_BETWEEN_ROWS, elapsed_s / 1000)
        row = {
            "time": round(time.time(), 3),
            "monotonic_s": round(self._counted_to, 3),
            **self._process,
            "take": self.take,
            "from_step": self.from_step,
            "step": self.step,
            "tokens": self.tokens,
            "elapsed_s": round(elapsed_s, 4),
            "seconds": {phase: round(value, 4) for phase, value in self.seconds.items()},
        }
        self._append(json.dumps(row).encode() + b"\n")

    def _count(self) -> float:
        """Add the time since the last call to the innermost span. Return the age of the process in seconds."""
        now = time.monotonic()
        phase = self._phases[-1]
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._counted_to
        self._counted_to = now
        return now - self.started_at

    def _append(self, line: bytes) -> None:
        """Write one line at once. After an error the next row tries again; the metrics report it."""
        try:
            if self._file is None:
                assert self.path is not None
                self._file = os.open(
                    self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666
                )
                size = os.fstat(self._file).st_size
                self._whole = size == 0 or os.pread(self._file, 1, size - 1) == b"\n"
            line = line if self._whole else b"\n" + line  # a killed process may have left half a line
            self._whole = os.write(self._file, line) == len(line)
        except OSError:
            self._whole = False


def process_started_at() -> float:
    """Return when this process started, on the clock of time.monotonic(). Without /proc, return the present time."""
    now = time.monotonic()
    with suppress(OSError, ValueError, IndexError, AttributeError):
        text = Path("/proc/self/stat").read_text()
        ticks = int(text.rpartition(")")[2].split()[19])  # field 22; the process name before it may contain anything
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return now - max(0.0, age_s)
    return now
