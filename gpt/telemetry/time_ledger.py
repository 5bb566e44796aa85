"""Record the time of a run, phase by phase, in RUN/ledger.jsonl; gpt/telemetry/goodput.py adds it up.

Every rank keeps one, so that the loop is the same on all; the main rank's alone has a file. Nothing here communicates
or waits, and a ledger that cannot be written never stops a run. A killed process loses what it did since its last row.
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

# What a span may be called; "start_up" may be followed by "/" and a part of it.
PHASES = (
    "start_up",  # from the start of the process to its first step
    "data",  # waiting for a batch
    "training",
    "evaluation",
    "sampling",
    "saving",  # as long as training stood still for it
    "waiting_for_save",  # until an earlier save in the background was done
    "rewinding",
    "shutdown",
    "other",  # between the spans
)
IMPORTS, PREPARING = "start_up/imports", "start_up/preparing"
MOST_S_BETWEEN_ROWS = 60.0


class TimeLedger:
    """Counts the seconds of this process by phase. Time outside of all spans is "start_up/preparing" until the first
    span that is no part of the start-up, and "other" from then on; so the phases add up to the age of the process.

    `path`: None on all ranks but the main one. It is opened at the first row; a folder that is not there yet is not
    made for it. `started_at`: on the clock of time.monotonic(); None: when the process started, as the kernel has it.
    What went by before is "start_up/imports". As a context manager: leaving it, by an error too, writes the last row.
    """

    def __init__(
        self, path: Path | None, *, started_at: float | None = None, world_size: int = 1, restart_count: int = 0
    ) -> None:
        now = time.monotonic()
        self.path = path
        self.started_at = process_started_at() if started_at is None else started_at
        self.seconds = {IMPORTS: now - self.started_at}
        self.step = self.tokens = self.take = 0
        self.from_step: int | None = None  # until `resume` says so
        self._counted_to = now
        self._phases = [PREPARING]  # the spans that are open, the innermost last; the first is never left
        self._process = {
            "process": secrets.token_hex(4),
            "host": socket.gethostname(),
            "boot": _boot_id(),
            "restart_count": restart_count,
            "world_size": world_size,
        }
        self._next_row_at = math.inf  # until somebody writes the first one
        self._file: int | None = None
        self._whole = False  # whether the file is known to end with a whole line

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
        """What happens inside counts as `phase`; of spans inside spans, the innermost counts."""
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
        """Training goes on from here: call it once before the first step, and, `rewound`, after each return to an
        earlier checkpoint: what had been done past `step`, in this process or one before, will be done again."""
        if rewound:
            self.write()
            self.take += 1
        self.step = self.from_step = step
        self.tokens = tokens
        self.write()

    def shut_down(self) -> None:
        """From now on time outside of all spans is "shutdown"."""
        self._count()
        self._phases[0] = "shutdown"

    def step_done(self, *, step: int, tokens: int) -> None:
        """After each step, outside of its spans. Writes a row after the first one, and then about every thousandth of
        the age of the process, at most a minute apart; between the rows it costs nothing."""
        first = self.step == self.from_step
        self.step, self.tokens = step, tokens
        if self.path is not None and (first or time.monotonic() >= self._next_row_at):
            self.write()

    def write(self, *, step: int | None = None, tokens: int | None = None) -> None:
        """Append a row: at a log point, after a save, at the end. Steps and tokens: those of the last call if None."""
        self.step = self.step if step is None else step
        self.tokens = self.tokens if tokens is None else tokens
        if self.path is None:
            return
        elapsed_s = self._count()
        self._next_row_at = self._counted_to + min(MOST_S_BETWEEN_ROWS, elapsed_s / 1000)
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
        """Give the time since the last call to the innermost span; the age of the process."""
        now = time.monotonic()
        phase = self._phases[-1]
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._counted_to
        self._counted_to = now
        return now - self.started_at

    def _append(self, line: bytes) -> None:
        """One write a line. After an error, which the metrics in the same folder tell of, the next row tries again."""
        try:
            if self._file is None:
                assert self.path is not None
                self._file = os.open(
                    self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666
                )
                size = os.fstat(self._file).st_size
                self._whole = size == 0 or os.pread(self._file, 1, size - 1) == b"\n"
            line = line if self._whole else b"\n" + line  # what a killed process left half written spoils no other row
            self._whole = os.write(self._file, line) == len(line)
        except OSError:
            self._whole = False


def process_started_at() -> float:
    """When this process started, on the clock of time.monotonic(); now, where there is no /proc to say so."""
    now = time.monotonic()
    with suppress(OSError, ValueError, IndexError, AttributeError):
        text = Path("/proc/self/stat").read_text()
        ticks = int(text.rpartition(")")[2].split()[19])  # field 22, after a name that may hold anything
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return now - max(0.0, age_s)
    return now


def _boot_id() -> str:
    """Names this start of the machine: until the next, its processes share one monotonic clock. Empty if unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
