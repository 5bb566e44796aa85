"""The parts that run benchmarks/gpu.py: our speed beside that of the peers which are installed."""

import subprocess
import sys
from collections.abc import Iterator

from job import ROOT, Check, Job, last

from gpt.files.json_files import read_json_object
from launch.processes.rank_process import die_with_parent


def small(job: Job) -> Iterator[Check]:
    """125M parameters."""
    yield from speed(job, "125m")


def medium(job: Job) -> Iterator[Check]:
    """350M parameters."""
    yield from speed(job, "350m")


def large(job: Job) -> Iterator[Check]:
    """1.3B parameters."""
    yield from speed(job, "1.3b")


def speed(job: Job, size: str) -> Iterator[Check]:
    """Tokens/s, MFU and memory of each contender, and how many times as fast as each peer we are."""
    file = job.folder / f"{size}.json"
    command = [sys.executable, "benchmarks/gpu.py", "--device", job.device.type, "--json", str(file)]
    command += ["--size", "tiny" if job.tiny else size, *(["--nanogpt", str(job.nanogpt)] if job.nanogpt else [])]
    with (job.folder / "speed.log").open("ab") as log:
        done = subprocess.run(
            command, cwd=ROOT, preexec_fn=die_with_parent, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    if done.returncode != 0:
        raise RuntimeError(f"benchmarks/gpu.py ended with status {done.returncode}: {last(job, 'speed.log')}")
    found = read_json_object(file)
    for name, row in found["contenders"].items():
        note = "" if row["mfu"] is None else f"MFU {row['mfu']:.1%}, "
        note += f"{row['gpu_peak_bytes'] / 2**30:.1f} GiB on the GPU"
        yield Check(name, row["tokens_per_s"], unit="tokens/s", note=note)
    for name, row in found["contenders"].items():
        if row["our_speed"] is not None:
            ratio = row["our_speed"]
            spread = f"rounds {ratio['paired_min']:.3f} to {ratio['paired_max']:.3f}"
            yield Check(f"our speed / {name}", ratio["paired_median"], unit="times", note=spread)
    for name, reason in found["absent"].items():
        yield Check(f"{name}: absent", 1, note=reason)
    yield Check("losses of equal models apart", found["largest_loss_difference_nats"], 0.05, "nats")
