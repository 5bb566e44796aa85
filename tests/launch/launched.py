"""For tests: run `triaxial train` with its own ranks in the background, and kill ranks from outside by process id."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from gpt.telemetry.goodput import read_account
from launch.runs.history import read_events

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 1200.0  # for anything that a run does; far longer than it takes, only to end a broken test
QUIET = ["--metrics.wandb", "disabled", "--run.peak_flops_per_s", "1e12"]
TRIAXIAL = [sys.executable, "-m", "launch.main"]


def torchrun(*options):
    return [sys.executable, "-m", "launch.torchrun", *options, "-m", "launch.main"]


def wait_for(condition, *, what, wait_s=WAIT_S):
    """Poll until `condition()` returns a true value, and return it."""
    ends_at = time.monotonic() + wait_s
    while not (found := condition()):
        assert time.monotonic() < ends_at, f"no {what} after {wait_s} s"
        time.sleep(0.005)
    return found


class Launched:
    """A launcher with its ranks, which write to `run`; its output goes to files beside `run`, or in `logs`."""

    def __init__(self, recipe, run, *words, command=TRIAXIAL, environment=None, logs=None, new_session=False):
        self.run, self.logs, self.number = Path(run), Path(logs or Path(run).parent), 0
        while (log := self.logs / f"{self.run.name}.{self.number}.out").exists():
            self.number += 1
        self.out, self.err = log, log.with_suffix(".err")
        self.temporary = self.logs / "tmp"
        self.temporary.mkdir(parents=True, exist_ok=True)
        settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary)}
        words = ["train", recipe, "--run.directory", run, *QUIET, *words]
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [*command, *map(str, words)],
                stdout=out,
                stderr=err,
                env={**os.environ, **settings, **(environment or {})},
                cwd=ROOT,
                start_new_session=new_session,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()  # its ranks die with it
            self.process.wait()

    def shown(self):
        return self.out.read_text(errors="replace")

    def errors(self):
        return self.err.read_text(errors="replace")

    def step(self):
        """The last step that rank 0 has logged."""
        try:
            lines = (self.run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return 0
        steps = []
        for line in lines[-3:]:
            with contextlib.suppress(ValueError, TypeError, KeyError):  # half written, or damaged by a test
                steps.append(int(json.loads(line)["step"]))
        return max(steps, default=0)

    def wait_for(self, condition, *, what):
        """As the function, but fail with the launcher's output if the launcher ends first."""

        def look():
            ended = self.process.poll() is not None
            found = condition()
            assert found or not ended, f"{what}: the launcher ended before:\n{self.shown()}\n{self.errors()}"
            return found

        return wait_for(look, what=what)

    def starts(self):
        """The number of times that rank 0 has started to train."""
        account = read_account(self.run / "ledger.jsonl")
        return sum(process.from_step is not None for process in account.processes) if account else 0

    def wait_for_step(self, step, *, starts=1):
        """Wait until this step is done in start number `starts` of the ranks; returns the current step."""
        return self.wait_for(
            lambda: self.starts() >= starts and (at := self.step()) >= step and at,
            what=f"step {step} of start {starts}",
        )

    def told(self, kind):
        """The texts of the events of one kind. A line truncated by a kill on a full disk does not count."""
        return [event.text for event in read_events(self.run / "events.jsonl", []) if event.kind == kind]

    def ranks(self):
        """Process id by rank of the ranks that run now, whichever process started them."""
        found, mine = {}, str(self.run).encode()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if mine not in words:
                    continue
                for setting in (folder / "environ").read_bytes().split(b"\0"):
                    name, _, value = setting.partition(b"=")
                    if name == b"RANK" and int(folder.name) != self.process.pid:
                        found[int(value)] = int(folder.name)
            except (OSError, ValueError):
                continue
        return found

    def kill(self, rank, number=signal.SIGKILL):
        """Send a signal to one rank; returns its process id."""
        pid = self.wait_for(lambda: self.ranks().get(rank), what=f"rank {rank}")
        os.kill(pid, number)
        return pid

    def end(self, wait_s=WAIT_S):
        """Wait for the end; returns the exit status."""
        return self.process.wait(timeout=wait_s)


def losses(run):
    """Loss by step as exact hexadecimal doubles. Checks that each step is logged once."""
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == sorted(set(steps)), f"steps twice in {run}"
    return {line["step"]: float(line["loss"]).hex() for line in lines if "loss" in line}


def newest(run):
    """The folder of the newest checkpoint."""
    return max((Path(run) / "checkpoints").glob("step-*[0-9]"))


def saved(run):
    """SHA-256 of every tensor file of the newest checkpoint, and the loop's state: weights, moments, position."""
    folder = newest(run)
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}
    assert files
    state = json.loads((folder / "state.json").read_text())
    return folder.name, files, {key: value for key, value in state.items() if key != "config"}


def left_behind(run):
    """Processes that still run for this run directory."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(run).encode() in (folder / "cmdline").read_bytes() and int(folder.name) != os.getpid():
                found.append(int(folder.name))
        except OSError:
            continue
    return found
