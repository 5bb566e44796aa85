"""What a part of the GPU day is given and what it yields."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from launch.processes.rank_process import die_with_parent

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Job:
    """`folder`: the part's own, for files. `shared`: of all parts, for a corpus and a trained run.

    `tiny`: sizes with which each part takes seconds on a CPU, to try the harness. `nanogpt`: a checkout of nanoGPT.
    """

    device: torch.device
    folder: Path
    shared: Path
    tiny: bool
    nanogpt: Path | None = None

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"


@dataclass(frozen=True)
class Check:
    """A number that a part found. With `at_most` it passes or fails; without, it is a figure."""

    name: str
    found: float
    at_most: float | None = None
    unit: str = ""
    note: str = ""

    @property
    def passed(self) -> bool | None:
        """None for a figure. NaN fails."""
        return None if self.at_most is None else bool(self.found <= self.at_most)


class LeftOut(Exception):
    """This machine cannot run a part, or a package is missing; the text says what it needs."""


def holds(name: str, truth: bool, note: str = "") -> Check:
    """A condition as a check: 0 faults if it holds, else 1."""
    return Check(name, 0.0 if truth else 1.0, 0.0, "faults", note)


def finish(device: torch.device) -> None:
    """Wait until the device has done all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def triaxial(job: Job, *words: object, check: bool = True, log: str = "triaxial.log") -> int:
    """Run `triaxial` with these words; its output goes to a file in the part's folder. Return the exit status."""
    command = [sys.executable, "-m", "launch.main", *map(str, words)]
    with (job.folder / log).open("ab") as file:
        done = subprocess.run(
            command, cwd=ROOT, preexec_fn=die_with_parent, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    if check and done.returncode != 0:
        raise RuntimeError(
            f"`triaxial {' '.join(map(str, words))}` ended with status {done.returncode}: {last(job, log)}"
        )
    return done.returncode


def last(job: Job, log: str) -> str:
    """The last line of a log."""
    lines = (job.folder / log).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"


PartFunction = Callable[[Job], Iterator[Check]]
