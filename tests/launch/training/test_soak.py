"""The soak test: one run that is hit by random faults, one every 30 s, and must end like an undisturbed run."""

import itertools
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from gpt.telemetry.goodput import read_account

SOAK_S = float(os.environ.get("TRIAXIAL_REHEARSE_SOAK_S", "1800"))
MTBF_S = float(os.environ.get("TRIAXIAL_REHEARSE_MTBF_S", "30"))
HANG_TIMEOUT_S = 20.0
JOIN_TIMEOUT_S = 60
NOT_FINITE_EVERY = 97  # steps
SAVE_EVERY = 8  # steps
PROGRAM = Path(__file__).parents[1] / "soak_program.py"
# A private /dev/shm, so that files left there can only be ours. The launcher keeps its process id.
APART = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs shm /dev/shm && exec "$@"', "sh"]
SETTINGS = [
    *("--nproc", 2, "--max-restarts", 1_000_000, "--checkpoint.every_tokens", 512 * SAVE_EVERY),
    *("--checkpoint.keep_last", 3, "--checkpoint.max_failures", 1_000_000),
    *("--health.hang_timeout_s", HANG_TIMEOUT_S, "--health.first_step_timeout_s", 600),
    *("--run.collective_timeout_s", JOIN_TIMEOUT_S),  # also for ranks that hang before the watchdog starts
    *("--health.saving_timeout_s", 300, "--schedule.decay_tokens", 512 * 20_000),
    *("--run.restart_pause_s", 0),  # else a fault would wait for the next start and hit it at once
]


class Faults:
    """The faults, one at a time. Each counts itself and returns when it has been made."""

    def __init__(self, job, launched, disk, chance):
        self.job, self.launched, self.disk, self.chance = job, launched, disk, chance
        self.made = dict.fromkeys(("kill", "stop", "full", "corrupt"), 0)

    def kill(self):
        self.job.kill(self.chance.randrange(2))

    def stop(self):
        self.job.kill(self.chance.randrange(2), signal.SIGSTOP)

    def full(self):
        """Fill the disk for a few seconds, in which saves fail."""
        filler = self.disk / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError:
                pass
        time.sleep(self.chance.uniform(1, 5))
        filler.unlink()

    def corrupt(self):
        """Flip a bit of the newest checkpoint, then kill a rank, so that the run must load it."""
        try:
            path = max(self.launched.newest(self.job.run).glob("*.safetensors"))
            with path.open("r+b", buffering=0) as file:
                offset = self.chance.randrange(path.stat().st_size)
                byte = os.pread(file.fileno(), 1, offset)[0]
                os.pwrite(file.fileno(), bytes([byte ^ 1 << self.chance.randrange(8)]), offset)
        except (OSError, ValueError):  # just deleted, or none exists yet
            pass
        self.kill()

    def make(self, kind):
        self.made[kind] += 1
        getattr(self, kind)()


def descriptors(pid):
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def shared_memory(pid):
    """Return the number of files in /dev/shm as this process sees it."""
    return len(list(Path(f"/proc/{pid}/root/dev/shm").iterdir()))


def starting_s(account):
    """Return the third quartile of the start-up times, in seconds."""
    each = sorted(sum(process.start_up.values()) for process in account.processes)
    return each[len(each) * 3 // 4]


@pytest.mark.rehearse
@pytest.mark.timeout(4 * SOAK_S + 1200)
def test_soak(tiny_corpus, launched, tmp_path, small_disk):
    seed, disk = random.randrange(1 << 30), small_disk(40 << 20)  # space for some checkpoints
    chance, run = random.Random(seed), disk / "run"
    command = [*APART, sys.executable, str(PROGRAM), str(NOT_FINITE_EVERY)]
    environment = {"PYTHONPATH": f"{launched.ROOT}:{PROGRAM.parent}"}
    open_files, shared = [], []
    with launched.Launched(
        tiny_corpus.recipe, run, *SETTINGS, "--train.total_tokens", 512 * 10**7, command=command,
        environment=environment, logs=tmp_path,
    ) as job:  # fmt: skip
        job.wait_for_step(1)
        faults, ends_at, starts = Faults(job, launched, disk, chance), time.monotonic() + SOAK_S, 1
        kinds = itertools.cycle(chance.sample([*faults.made, "kill"], len(faults.made) + 1))
        while time.monotonic() < ends_at:
            time.sleep(min(chance.expovariate(1 / MTBF_S), 4 * MTBF_S))
            assert job.process.poll() is None, (seed, faults.made, job.errors()[-4000:])
            faults.make(next(kinds))
            if job.starts() > starts:
                starts = job.starts()
                open_files.append(descriptors(job.process.pid))
                shared.append(shared_memory(job.process.pid))
        job.wait_for_step(1, starts=job.starts())
        time.sleep(HANG_TIMEOUT_S + 5)  # for a rank that was stopped last
        job.wait_for(lambda: len(job.ranks()) == 2, what="both ranks after the last fault")
        job.wait_for_step(job.step() + 2)
        job.process.send_signal(signal.SIGTERM)
        assert job.end() == 75, (seed, job.errors()[-4000:])
    last = job.step()
    with launched.Launched(
        tiny_corpus.recipe, tmp_path / "plain", *SETTINGS, "--train.total_tokens", 512 * last, command=command,
        environment=environment,
    ) as plain:  # fmt: skip
        assert plain.end(wait_s=2 * SOAK_S + 600) == 0, plain.errors()
    ours, ideal = read_account(run / "ledger.jsonl"), read_account(plain.run / "ledger.jsonl")
    step_s = ours.seconds["training"] / last
    restarts = len(ours.processes) - 1
    lost_s = (restarts + 1) * starting_s(ours) + restarts * step_s * SAVE_EVERY / 2
    lost_s += faults.made["stop"] * HANG_TIMEOUT_S * 1.5
    lost_s += faults.made["corrupt"] * step_s * SAVE_EVERY
    best = 1 - lost_s / ours.wall_s
    figures = {
        "seed": seed, "faults": faults.made,
        "not_finite": last // NOT_FINITE_EVERY, "restarts": restarts,
        "wall_s": round(ours.wall_s), "steps": last, "repeated_steps": ours.repeated_steps,
        "goodput": round(ours.goodput, 3), "possible": round(best, 3), "share": round(ours.goodput / best, 3),
        "undisturbed_goodput": round(ideal.goodput, 3), "start_s": round(starting_s(ours), 1),
        "open_files": [min(open_files), max(open_files)], "shared_memory_files": [min(shared), max(shared)],
        "told": {kind: len(job.told(kind)) for kind in ("restart", "checkpoint_failed", "checkpoint_skipped",
                                                       "step_skipped")},
    }  # fmt: skip
    print("\n" + json.dumps(figures))
    assert launched.losses(run) == launched.losses(plain.run), seed
    assert launched.saved(run) == launched.saved(plain.run), seed
    assert not launched.left_behind(run)
    assert not list(job.temporary.glob("triaxial_*"))
    for counts, more in ((open_files, 8), (shared, 2)):  # of the launcher, after each restart
        half = len(counts) // 2
        assert max(counts[half:]) <= max(counts[: half + 1]) + more, (open_files, shared)
    assert ours.goodput >= 0.8 * best, figures
