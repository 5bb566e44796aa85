"""A long run with every feature on uses no more memory, descriptors, threads or files as it goes on."""

import os
import re
import statistics
import time
from pathlib import Path

import pytest

REHEARSE_S = float(os.environ.get("TRIAXIAL_REHEARSE_FLAT_S", "3600"))
ROW_TOKENS = 32
BATCH = 2 * ROW_TOKENS  # a row for each of two ranks
STEPS = 3000
PERIOD = 100  # steps between two evaluations, saves, texts and so on; three periods are the first tenth
MEMORY_GROWTH = 12 << 20  # bytes after the first tenth, of which the W&B client and malloc's arenas take up to 6 MB
SETTINGS = [
    *("--nproc", 2, "--data.seq_len", ROW_TOKENS, "--model.n_ctx", ROW_TOKENS, "--model.d_model", 16),
    *("--model.n_layers", 1),
    *("--batch.micro_batch_size", 1, "--batch.global_batch_tokens", BATCH, "--schedule.warmup_tokens", BATCH),
    *("--train.evaluate_every_tokens", BATCH * PERIOD, "--train.validation_tokens", 4 * BATCH),
    *("--train.sample_every_tokens", BATCH * PERIOD, "--train.sample_new_tokens", 8),
    *("--train.few_shot_every_tokens", BATCH * PERIOD, "--train.few_shot_limit", 2),
    *("--train.few_shot_examples", "[0]", "--train.few_shot_tasks", '["gpt3_two_digit_addition"]'),
    *("--checkpoint.every_tokens", BATCH * PERIOD, "--metrics.wandb", "offline"),
    *("--health.straggler_every_steps", 5, "--health.replica_check_every_steps", PERIOD),
]
# A private /dev/shm, so that files there can only be ours. The launcher keeps its process id.
APART = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs shm /dev/shm && exec "$@"', "sh"]


def usage(pid):
    """Anonymous memory in bytes, open descriptors and threads of a process."""
    anonymous = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return [int(anonymous.group(1)) << 10, *(len(os.listdir(f"/proc/{pid}/{folder}")) for folder in ("fd", "task"))]


def watch(job, *, every_s):
    """Return step -> usages of rank 0, of rank 1 and of the launcher, and the number of their temporary files."""
    seen = {}
    job.wait_for_step(1)
    ranks = job.ranks()
    while job.process.poll() is None:
        time.sleep(every_s)
        step = job.step()
        try:
            files = len(os.listdir(f"/proc/{job.process.pid}/root/dev/shm")) + len(list(job.temporary.rglob("*")))
            seen[step] = [*map(usage, (ranks[0], ranks[1], job.process.pid)), files]
        except (OSError, AttributeError):  # a process has ended
            break
    return seen


def check_flat(seen):
    """Compare the first tenth, without its first third, in which everything starts, with the last tenth."""
    last = max(seen)
    early = [use for step, use in seen.items() if last / 30 < step <= last / 10]
    late = [use for step, use in seen.items() if step > last * 0.9]
    assert len(early) >= 5, sorted(seen)
    for i, name in enumerate(("rank 0", "rank 1", "the launcher")):
        for j, (kind, growth) in enumerate((("memory", MEMORY_GROWTH), ("descriptors", 0), ("threads", 0))):
            before, after = (statistics.median_high(use[i][j] for use in uses) for uses in (early, late))
            assert after <= before + growth, f"{kind} of {name}: {before} -> {after}"
    before, after = (statistics.median_high(use[3] for use in uses) for uses in (early, late))
    assert after <= before, f"temporary files: {before} -> {after}"


def run(tiny_corpus, launched, tmp_path, *words, every_s):
    command = [*APART, *launched.TRIAXIAL] if os.geteuid() == 0 else launched.TRIAXIAL
    with launched.Launched(tiny_corpus.recipe, tmp_path / "run", *SETTINGS, *words, command=command) as job:
        seen = watch(job, every_s=every_s)
        assert job.end() == 0, job.errors()[-4000:]
    check_flat(seen)


@pytest.mark.timeout(900)
def test_three_thousand_steps_use_no_more_than_the_first_three_hundred(tiny_corpus, launched, tmp_path):
    total = ("--train.total_tokens", BATCH * STEPS, "--schedule.decay_tokens", BATCH * STEPS)
    run(tiny_corpus, launched, tmp_path, *total, every_s=0.2)


@pytest.mark.rehearse
@pytest.mark.timeout(2 * REHEARSE_S + 300)
def test_an_hour_uses_no_more_than_its_first_six_minutes(tiny_corpus, launched, tmp_path):
    total = ("--train.total_tokens", BATCH * 10**7, "--schedule.decay_tokens", BATCH * 10**7)
    run(tiny_corpus, launched, tmp_path, *total, "--train.stop_after_s", REHEARSE_S, every_s=2)
