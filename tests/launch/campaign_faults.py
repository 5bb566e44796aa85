"""For tests: the faults of the campaign, each drawn from a seed and made to a running job."""

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

DAY_S = 86_400
# Faults that only a person can repair may end a run with status 2 and one line; `mend` then undoes them.
FOR_A_PERSON = ("replaced", "deleted", "truncated", "flipped")
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
ERRORS = ("fsync", "openat", "write")


def relay(source, target, closed):
    """Copy the output of a job until `closed` is set; then nobody reads it any more."""
    with open(target, "ab", buffering=0) as file:
        os.set_blocking(source, False)
        while not closed.is_set():
            try:
                data = os.read(source, 1 << 16)
            except BlockingIOError:
                time.sleep(0.01)
                continue
            if not data:
                break
            file.write(data)
    os.close(source)


class Campaign:
    """The faults that can be made to one job. `rank`: a random rank of it that runs.

    `damaged` has the contents of damaged files by path, of the run's earlier jobs too.
    """

    def __init__(self, job, chance, disk, damaged):
        self.job, self.chance, self.disk, self.damaged = job, chance, disk, damaged
        self.told = []  # what was done, for the report of a failure

    def make(self, kind):
        """Make one fault. If a process or file has just disappeared, the fault is smaller."""
        with contextlib.suppress(ProcessLookupError, FileNotFoundError, NotADirectoryError):
            self.told.append(f"{kind} at step {self.job.step()}: {getattr(self, kind)()}")

    def rank(self):
        ranks = self.job.ranks()
        if not ranks:
            raise ProcessLookupError
        rank = self.chance.choice(sorted(ranks))
        return rank, ranks[rank]

    def newest(self):
        return max((self.job.run / "checkpoints").glob("step-*[0-9]"), default=None)

    # ---- processes ----

    def kill(self):
        rank, pid = self.rank()
        os.kill(pid, signal.SIGKILL)
        return f"rank {rank}"

    def stop(self):
        rank, pid = self.rank()
        os.kill(pid, signal.SIGSTOP)
        return f"rank {rank}"

    def signal(self):
        number, launcher = self.chance.choice(SIGNALS), self.chance.random() < 0.5
        rank, pid = ("no rank, the launcher", self.job.process.pid) if launcher else self.rank()
        os.kill(pid, number)
        return f"{number.name} to rank {rank}"

    def helper(self):
        """Stop or kill the monitor of a rank."""
        rank, pid = self.rank()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        number = self.chance.choice((signal.SIGSTOP, signal.SIGKILL))
        for child in children:
            os.kill(int(child), number)
        return f"{number.name} to {len(children)} children of rank {rank}"

    def output(self):
        self.job.closed.set()
        return "nobody reads the output"

    # ---- the disk ----

    def full(self):
        """Fill the disk for some seconds."""
        filler, seconds = self.disk / f"filler-{self.job.run.name}", self.chance.uniform(1, 4)
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        threading.Timer(seconds, lambda: filler.unlink(missing_ok=True)).start()
        return f"for {seconds:.1f} s"

    def error(self):
        """Let some system calls of rank 0 fail with EIO: fsyncs of any file, others on the files of the run alone."""
        pid = self.job.ranks().get(0)
        if pid is None:
            raise ProcessLookupError
        call, times = self.chance.choice(ERRORS), self.chance.choice((1, 3))
        words = ["strace", "-f", "-qq", "-o", self.job.logs / f"strace-{self.job.run.name}", "-e", f"trace={call}"]
        if call != "fsync":
            for name in ("metrics.jsonl", "events.jsonl", "ledger.jsonl"):
                words += ["-P", self.job.run / name]
        words += ["-e", f"inject={call}:error=EIO:when=1..{times}", "-p", pid]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run([*map(str, words)], timeout=2, stderr=subprocess.DEVNULL)
        return f"EIO in at most {times} {call} of rank 0"

    # ---- files ----

    def victim(self):
        """A file of the newest checkpoint, or one that the run appends to."""
        files = sorted((self.newest() or self.job.run).glob("*.*"))
        files += [path for path in (self.job.run / "metrics.jsonl", self.job.run / "events.jsonl") if path.exists()]
        if not files:
            raise FileNotFoundError
        return self.chance.choice(files)

    def flipped(self):
        path = self.victim()
        with path.open("r+b", buffering=0) as file:
            offset = self.chance.randrange(max(1, path.stat().st_size))
            byte = os.pread(file.fileno(), 1, offset) or b"\0"
            os.pwrite(file.fileno(), bytes([byte[0] ^ 1 << self.chance.randrange(8)]), offset)
        self.damaged[path] = path.read_bytes()
        return f"bit of {path.name}; {self.also_kill()}"

    def truncated(self):
        path = self.victim()
        os.truncate(path, self.chance.randrange(max(1, path.stat().st_size)))
        self.damaged[path] = path.read_bytes()
        return f"{path.name}; {self.also_kill()}"

    def deleted(self):
        path = self.chance.choice((self.victim(), self.newest() or self.job.run / "none"))
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return f"{path.name}; {self.also_kill()}"

    def replaced(self):
        """Put a link, a pipe or a folder in place of a file."""
        path, kind = self.victim(), self.chance.choice(("link", "pipe", "folder"))
        aside = self.job.logs / f"aside-{self.job.run.name}-{path.name}"
        shutil.move(path, aside)
        {"link": lambda: path.symlink_to(aside), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
        self.aside = (path, aside)
        return f"{path.name} by a {kind}; {self.also_kill()}"

    def also_kill(self):
        """A damaged file is read only at a start."""
        return f"killed {self.kill()}" if self.chance.random() < 0.7 else "no kill"

    def clock(self):
        """Files get the times of a clock that was wrong by a day."""
        shift = self.chance.choice((-DAY_S, DAY_S))
        for path in self.job.run.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                os.utime(path, (time.time() + shift,) * 2)
        return f"file times {shift:+} s; {self.also_kill()}"

    # ---- the person ----

    def mend(self):
        """Put back what was replaced. Return whether there was anything to mend: not if it was damaged before."""
        path, aside = getattr(self, "aside", (None, None))
        if path is None or not aside.exists() or aside.read_bytes() == self.damaged.get(path):
            return False
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(aside, path)
        return True


KINDS = (
    "kill", "stop", "signal", "full", "error", "flipped", "truncated", "deleted", "replaced", "helper", "output",
    "clock",
)  # fmt: skip
