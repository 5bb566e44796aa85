"""Pairs of faults, drawn with a seed, in runs on tensor 2, pipeline 2 or data 2.

Each run must end bit-equal to an undisturbed one; or with status 2 and one true line if only a person can repair
the fault, and bit-equal once that is repaired. A failing pair runs again alone by its seed:

    TRIAXIAL_CAMPAIGN_SEED=123 make rehearse ARGS="-k campaign"

Several pairs run at once, because much of a pair is waiting: for a hang verdict, a full disk, a lost peer. Each
has a disk of its own. TRIAXIAL_CAMPAIGN_JOBS: their number, 3 for two cores. TRIAXIAL_CAMPAIGN_PAIRS: 200 in all.
"""

import json
import os
import queue
import random
import re
import resource
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import campaign_faults
from launched import QUIET, ROOT, TRIAXIAL, Launched, left_behind, losses, saved

PAIRS = int(os.environ.get("TRIAXIAL_CAMPAIGN_PAIRS", "200"))
JOBS = int(os.environ.get("TRIAXIAL_CAMPAIGN_JOBS", (os.cpu_count() or 1) * 3 // 2))
SEED = os.environ.get("TRIAXIAL_CAMPAIGN_SEED")
STEPS, HANG_TIMEOUT_S, STARTS, WAIT_S = 32, 10, 8, 600
VERDICT = re.compile(  # on an earlier fault, before a restart
    r"triaxial: error: (fault of|no progress for|rank \d+ .* lost its peers) "
)
LAYOUTS = {
    "tensor 2": ("--parallel.tensor", 2),
    "pipeline 2": ("--parallel.pipeline", 2),
    "data 2": ("--parallel.data", 2),
}
SETTINGS = (
    *("--nproc", 2, "--max-restarts", 8, "--run.restart_pause_s", 0, "--run.collective_timeout_s", 60),
    *("--train.total_tokens", 512 * STEPS, "--train.validation_tokens", 64, "--checkpoint.every_tokens", 512 * 4),
    *("--checkpoint.keep_last", 3, "--checkpoint.max_failures", 100, "--schedule.decay_tokens", 512 * 100),
    *("--batch.micro_batch_size", 4),  # 1 or 2 micro-batches a step: most of the processor time is overhead of each
    *("--health.hang_timeout_s", HANG_TIMEOUT_S, "--health.first_step_timeout_s", 60, "--health.saving_timeout_s", 60),
)


class PipedJob(Launched):
    """A launched run whose output goes through pipes, so that their readers can be closed."""

    def __init__(self, recipe, run, *words, logs, temporary):
        self.run, self.logs = run, logs
        self.temporary = temporary
        self.out, self.err = logs / f"{run.name}.out", logs / f"{run.name}.err"
        self.err.touch()
        self.said_before = len(self.errors())
        self.closed = threading.Event()
        settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
        command = [*TRIAXIAL, "train", recipe, "--run.directory", run, *QUIET, *words]
        self.process = subprocess.Popen(
            [*map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **settings},
            cwd=ROOT,
        )
        for pipe, target in ((self.process.stdout, self.out), (self.process.stderr, self.err)):
            source = os.dup(pipe.fileno())
            pipe.close()
            threading.Thread(target=campaign_faults.relay, args=(source, target, self.closed), daemon=True).start()

    def new_errors(self):
        return self.errors()[self.said_before :]


def disturb(job, campaign, faults):
    """Make the faults that are due; each is (step, kind)."""
    while faults and job.process.poll() is None:
        step, kind = faults[0]
        if job.step() < step:
            time.sleep(0.005)
            continue
        faults.pop(0)
        campaign.make(kind)


def try_pair(recipe, folder, disk, seed, plain):
    """Run one pair. Return a record; "failed" describes the failure, if there is one."""
    chance = random.Random(seed)
    layout = chance.choice(sorted(LAYOUTS))
    kinds = chance.sample(campaign_faults.KINDS, 2)
    faults = sorted((chance.randrange(1, STEPS - 8), kind) for kind in kinds)
    run, record = disk / f"run-{seed}", {"seed": seed, "layout": layout, "faults": list(faults), "statuses": []}
    began_at, mended, told, damaged = time.monotonic(), False, [], {}
    for _ in range(STARTS):
        job = PipedJob(recipe, run, *SETTINGS, *LAYOUTS[layout], logs=folder, temporary=folder / "tmp")
        with job:
            campaign = campaign_faults.Campaign(job, chance, disk, damaged)
            disturb(job, campaign, faults)
            told += campaign.told
            try:
                status = job.end(wait_s=WAIT_S)
            except subprocess.TimeoutExpired:
                return {
                    **record,
                    "told": told,
                    "failed": f"no end after {WAIT_S} s",
                    "errors": job.new_errors()[-1500:],
                }
        record["statuses"].append(status)
        time.sleep(0.05)
        errors = job.new_errors()
        if "Traceback (most recent call last)" in errors:
            return {**record, "told": told, "failed": "traceback", "errors": errors[-3000:]}
        if status == 0:
            break
        if status == 2:
            lines = [
                line for line in re.findall(r"^triaxial: error: .*", errors, re.MULTILINE) if not VERDICT.match(line)
            ]
            person = any(kind in campaign_faults.FOR_A_PERSON for kind in kinds)
            if len(lines) != 1 and not job.closed.is_set():
                return {**record, "told": told, "failed": f"status 2 with {len(lines)} lines", "errors": errors[-1500:]}
            if mended or not person:
                return {**record, "told": told, "failed": "status 2 for no mistake", "errors": errors[-1500:]}
            mended, record["person"] = True, lines[:1]
            if not campaign.mend():
                record["seconds"] = round(time.monotonic() - began_at, 1)
                return {**record, "told": told}  # no file is left that a person could put back
    record["seconds"] = round(time.monotonic() - began_at, 1)
    if record["statuses"][-1] != 0:
        return {**record, "told": told, "failed": "it never succeeded", "errors": errors[-1500:]}
    lost = any("metrics.jsonl" in line for line in told)  # some lines of the losses
    try:
        equal = saved(run) == saved(plain[layout]) and (lost or losses(run) == losses(plain[layout]))
    except (AssertionError, OSError, ValueError) as error:
        return {**record, "told": told, "failed": f"cannot compare: {error}"}
    if not equal:
        return {**record, "told": told, "failed": "it ended with other bits"}
    left = left_behind(run)
    return {**record, "told": told, **({"failed": f"left behind: {left}"} if left else {})}


@pytest.mark.rehearse
@pytest.mark.timeout(3 * 3600)
def test_campaign_of_pairs_of_faults(tiny_corpus, tmp_path, small_disk):
    disks = queue.SimpleQueue()
    for number in range(JOBS):
        disks.put(small_disk(48 << 20, tmp_path / f"disk-{number}"))
    (tmp_path / "tmp").mkdir()
    first = random.SystemRandom().randrange(1 << 30)
    seeds = [int(seed) for seed in SEED.split(",")] if SEED else range(first, first + PAIRS)
    plain = {layout: tmp_path / f"plain-{layout.replace(' ', '-')}" for layout in LAYOUTS}

    def train_undisturbed(layout):
        with Launched(tiny_corpus.recipe, plain[layout], *SETTINGS, *LAYOUTS[layout]) as job:
            assert job.end() == 0, job.errors()

    def try_on_a_disk(seed):
        disk = disks.get()
        try:
            record = try_pair(tiny_corpus.recipe, tmp_path, disk, seed, plain)
            subprocess.run(["rm", "-rf", disk / f"run-{seed}"], check=True)
        finally:
            disks.put(disk)
        print(json.dumps(record), flush=True)
        return record

    began_at = time.monotonic()
    with ThreadPoolExecutor(JOBS) as pool:
        list(pool.map(train_undisturbed, LAYOUTS))
        failed = [record for record in pool.map(try_on_a_disk, seeds) if "failed" in record]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    elapsed_s, processor_s = time.monotonic() - began_at, used.ru_utime + used.ru_stime
    print(f"{len(seeds)} pairs, {JOBS} at once: {elapsed_s:.0f} s, {processor_s:.0f} s of processor time", flush=True)
    assert not failed, f"{len(failed)} of {len(seeds)} pairs: seeds {[one['seed'] for one in failed]}"
