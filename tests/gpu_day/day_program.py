"""A GPU day of these parts, each of which ends in another way:  day_program.py RESULTS PART,..."""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks" / "gpu_day"), str(ROOT)]

import day  # noqa: E402
from job import Check, Job, LeftOut, holds  # noqa: E402
from parts import Part  # noqa: E402


def fails(job: Job) -> Iterator[Check]:
    yield Check("near enough", 0.5, 1.0, "nats")
    yield Check("too far", 2.0, 1.0, "nats", "<b>&")
    yield Check("not a number", float("nan"), 1.0)
    yield Check("only a figure", 1234.5, unit="tokens/s")


def raises(job: Job) -> Iterator[Check]:
    yield holds("before the error", True)
    raise ValueError("a tensor is on the wrong device")


def dies(job: Job) -> Iterator[Check]:
    os.abort()
    yield


def waits_once(job: Job) -> Iterator[Check]:
    """Does not end on the first call."""
    yield holds("before the wait", True)
    first = not (job.folder / "again").exists()
    (job.folder / "again").touch()
    if first:
        time.sleep(1000)


def waits(job: Job) -> Iterator[Check]:
    yield holds("before the wait", True)
    time.sleep(1000)


def leaves_out(job: Job) -> Iterator[Check]:
    if not job.on_gpu:
        raise LeftOut("it needs a GPU")
    yield holds("never here", False)


if __name__ == "__main__":
    results, names = Path(sys.argv[1]), sys.argv[2].split(",")
    parts = [Part(name, f"It {name}", f"day_program.{name}", 25.0 if name == "waits" else 200.0) for name in names]
    results.mkdir(exist_ok=True)
    args = {"device": "cpu", "tiny": True, "results": results, "again": False, "limit_s": 1000.0, "nanogpt": None}
    sys.exit(day.run_parts(parts, argparse.Namespace(**args), shown=parts))
