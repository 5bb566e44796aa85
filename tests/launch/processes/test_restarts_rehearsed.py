"""At full count: ranks killed at random under four layouts, other numbers of processes, and torchrun's own restarts."""

import os
import random
import signal
import time
from contextlib import suppress

import pytest
from free_ports import free_ports

from gpt.telemetry.goodput import read_account
from launch.processes.sealing import new_secret

pytestmark = [pytest.mark.rehearse, pytest.mark.timeout(3600)]

KILLS = int(os.environ.get("TRIAXIAL_REHEARSE_KILLS", "50"))
STEPS_A_KILL = 9
LAYOUTS = {
    "data 2": [],
    "tensor 2": ["--parallel.tensor", 2],
    "pipeline 2": ["--parallel.pipeline", 2],
    "ZeRO 3": ["--parallel.zero_stage", 3],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_random_ranks_killed_at_random_times(tiny_corpus, launched, tmp_path, layout):
    """A part of KILLS for each layout, one after another in one run; rank, step and moment are random."""
    order = list(LAYOUTS).index(layout)
    seeds = range(order, KILLS, len(LAYOUTS))
    words = ["--nproc", 2, *LAYOUTS[layout], "--train.total_tokens", 512 * (STEPS_A_KILL * len(seeds) + 12)]
    with launched.Launched(tiny_corpus.recipe, tmp_path / "undisturbed", *words) as plain:
        assert plain.end() == 0, plain.errors()
    down_s, killed, at = [], [], 0
    with launched.Launched(tiny_corpus.recipe, tmp_path / "run", *words, "--max-restarts", len(seeds)) as job:
        for count, seed in enumerate(seeds, 1):
            chance = random.Random(seed)
            rank, steps, moment_s = chance.randrange(2), chance.randrange(1, STEPS_A_KILL), chance.uniform(0, 0.1)
            at = job.wait_for_step(at + steps, starts=count)  # progress each time, or the run would be given up
            time.sleep(moment_s)
            job.kill(rank)
            killed_at = time.monotonic()
            killed.append((seed, rank, at))
            job.wait_for(lambda count=count: job.starts() > count, what=f"the restart after {killed}")
            down_s.append(time.monotonic() - killed_at)
        assert job.end() == 0, (killed, job.errors())
    assert launched.losses(job.run) == launched.losses(plain.run), killed
    assert launched.saved(job.run) == launched.saved(plain.run), killed
    told = job.told("restart")
    assert len(told) == len(killed)
    assert all(f"rank {rank} was killed by SIGKILL" in text for text, (_, rank, _) in zip(told, killed, strict=True))
    assert not launched.left_behind(job.run)
    down_s.sort()
    print(f"\n{layout}: {len(down_s)} kills, losses and weights equal; from the kill to training again "
          f"{down_s[len(down_s) // 2]:.1f} s (median), {down_s[-1]:.1f} s at most")  # fmt: skip


def test_losses_stay_within_1e_5_on_half_and_twice_the_processes(tiny_corpus, launched, tmp_path):
    """4 ranks, then 2, 4 and 1; each run is stopped by a signal and the next resumes from its checkpoint."""
    words = ["--train.total_tokens", 512 * 60, "--batch.micro_batch_size", 1]
    with launched.Launched(tiny_corpus.recipe, tmp_path / "undisturbed", *words, "--nproc", 4) as plain:
        assert plain.end() == 0, plain.errors()
    run, at = tmp_path / "run", 0
    for nproc in (4, 2, 4, 1):
        with launched.Launched(tiny_corpus.recipe, run, *words, "--nproc", nproc) as job:
            if nproc == 1:
                assert job.end() == 0, job.errors()
                break
            at = job.wait_for_step(at + 10)
            job.process.send_signal(signal.SIGTERM)
            assert job.end() == 75, job.errors()
            at = job.step()
    changed, plain_losses = ({step: float.fromhex(bits) for step, bits in launched.losses(each).items()}
                    for each in (run, plain.run))  # fmt: skip
    assert changed.keys() == plain_losses.keys()
    worst = max(abs(changed[step] - plain_losses[step]) for step in changed)
    print(f"\nworst difference of {len(changed)} losses: {worst:.1e}")
    assert worst < 1e-5
    changes = [text for text in job.told("setting_changed") if "data" in text or "parallel" in text]
    resumed = job.told("resumed")
    assert len(resumed) == 3, (resumed, changes)


@pytest.mark.parametrize("nodes", [1, 2])
def test_torchruns_own_restarts_in_place(tiny_corpus, launched, tmp_path, nodes):
    """One agent with two ranks, or two agents with one each, as on two nodes; ranks are killed one after another."""
    words, kills = ["--train.total_tokens", 512 * 200], 3
    with launched.Launched(tiny_corpus.recipe, tmp_path / "undisturbed", *words, "--nproc", 2) as plain:
        assert plain.end() == 0, plain.errors()
    settings = {"TRIAXIAL_JOB_SECRET": new_secret(), "GLOO_SOCKET_IFNAME": "lo"}
    options = ["--nproc-per-node", 2 // nodes, "--nnodes", nodes, "--max-restarts", kills + 1]
    if nodes == 2:
        port = free_ports(1)[0]
        options += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1"]
        options += ["--rdzv-id", "rehearsal"]
    jobs = []
    try:
        for _ in range(nodes):
            jobs.append(
                launched.Launched(
                    tiny_corpus.recipe,
                    tmp_path / "run",
                    *words,
                    command=launched.torchrun(*map(str, options)),
                    environment=settings,
                )
            )
        chance = random.Random(nodes)
        for count in range(kills):
            jobs[0].wait_for_step(jobs[0].step() + chance.randrange(5, 20), starts=count + 1)
            jobs[0].kill(chance.randrange(2))
        assert [job.end() for job in jobs] == [0] * nodes, [job.errors()[-3000:] for job in jobs]
    finally:
        for job in jobs:
            job.__exit__()
    run = jobs[0].run
    assert launched.losses(run) == launched.losses(plain.run)
    assert launched.saved(run) == launched.saved(plain.run)
    assert jobs[0].starts() == kills + 1
    told = jobs[0].told("restart")
    if nodes == 1:  # with two agents, the one whose rank did not die may count no restart
        assert [text.partition(":")[0] for text in told] == [f"restart {n} of {kills + 1}" for n in range(1, kills + 1)]
    assert not launched.left_behind(run)


def test_a_mistake_under_torchrun_is_printed_once_and_not_restarted(tiny_corpus, launched, tmp_path):
    with launched.Launched(
        tiny_corpus.recipe,
        tmp_path / "run",
        *("--model.vocab_size", 256),
        command=launched.torchrun("--nproc-per-node=2", "--max-restarts=5"),
    ) as job:
        assert job.end() == 1, "torchrun has no other failure status"
    lines = [line for line in job.errors().splitlines() if line.startswith("triaxial: error:")]
    assert len(lines) == 1, job.errors()
    assert "model.vocab_size = 256" in lines[0]


def test_sigterm_at_random_times_to_the_launcher(tiny_corpus, launched, tmp_path):
    """Six stops, each by one or three SIGTERMs, then to the end: no step is repeated."""
    words = ["--nproc", 2, "--train.total_tokens", 512 * 120]
    with launched.Launched(tiny_corpus.recipe, tmp_path / "undisturbed", *words) as plain:
        assert plain.end() == 0, plain.errors()
    chance, at, stops, saved_s = random.Random(4), 0, 0, []
    while True:
        with launched.Launched(tiny_corpus.recipe, tmp_path / "run", *words) as job:
            if stops < 6:
                job.wait_for_step(at + chance.randrange(3, 12))
                time.sleep(chance.uniform(0, 0.1))
                told_at = time.monotonic()
                for _ in range(chance.choice((1, 3))):
                    job.process.send_signal(signal.SIGTERM)
                    time.sleep(0.02)
            status = job.end()
            if stops < 6:
                saved_s.append(time.monotonic() - told_at)
            at = job.step()
            assert status == (75 if stops < 6 else 0), job.errors()
            if status == 0:
                break
            stops += 1
    assert launched.losses(job.run) == launched.losses(plain.run)
    assert launched.saved(job.run) == launched.saved(plain.run)
    assert read_account(job.run / "ledger.jsonl").repeated_steps == 0
    print(f"\nfrom SIGTERM to the end of the launcher: {max(saved_s):.1f} s at most of {stops}")


def test_a_rank_killed_while_the_disk_is_full_keeps_its_cause(tiny_corpus, launched, tmp_path, small_disk):
    """The restart meets the full disk as well: the launcher waits until there is room."""
    disk = small_disk(8 << 20)
    words = ["--nproc", 2, "--max-restarts", 1, "--train.total_tokens", 512 * 400, "--checkpoint.every_tokens", 5120]
    with launched.Launched(tiny_corpus.recipe, disk / "run", *words, logs=tmp_path) as job:
        job.wait_for_step(12)
        with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(4096))
        job.kill(1)
        job.wait_for(lambda: "the run starts again in" in job.errors(), what="a start on the full disk")
        (disk / "filler").unlink()
        assert job.end() == 0, job.errors()
    cause = "rank 1 was killed by SIGKILL"
    assert f"triaxial: {cause}" in job.errors()
    assert f"{job.run}/.owner.json: no space left on device; 0 bytes are free\n" in job.errors()
    (told,) = job.told("restart")
    assert told.startswith(f"restart 1 of 1 ({cause}")
