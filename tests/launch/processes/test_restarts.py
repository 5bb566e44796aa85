"""A run that loses ranks restarts automatically and ends with the same bits as an undisturbed run; real processes."""

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest

from gpt.errors import ConfigError
from launch.processes.local_launch import launch_local
from launch.processes.restarts import Outage, Restart, RestartPolicy, RunProgress, count_start
from launch.runs.history import furthest_step

HERE = Path(__file__).resolve().parents[1]
STEPS = ["--train.total_tokens", 512 * 40]


@pytest.fixture
def launch(tmp_path, monkeypatch, capfd):
    """Run rank_program under our launcher, in this process; returns the status and standard error."""
    monkeypatch.setenv("PYTHONPATH", f"{HERE.parents[1]}:{HERE}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)

    def start(behaviour, *, most, last_step=int, pause_s=0.0, outage_s=0.0):
        policy = RestartPolicy(most, last_step, pause_s, outage_s)
        status = launch_local(2, [behaviour, str(tmp_path)], module="rank_program", restarts=policy, grace_s=10)
        return status, capfd.readouterr().err

    return start


def test_failed_ranks_are_restarted_and_the_user_reads_why(launch, tmp_path):
    steps = iter([0, 40, 75])
    status, said = launch("crash-twice", most=5, last_step=lambda: next(steps))
    assert status == 0
    causes = [
        "rank 1 failed with exit status 1 (ValueError: the third tensor is bad) at step ~40",
        "rank 1 was killed by SIGKILL, perhaps out of memory at step ~75",
    ]
    assert said == "".join(f"triaxial: {cause}; restart {n} of 5\n" for n, cause in enumerate(causes, 1))
    told = [(tmp_path / f"start{n}").read_text() for n in range(3)]
    assert told == ["None", *(f"restart {n} of 5 ({cause})" for n, cause in enumerate(causes, 1))]


def test_a_run_fails_for_good_after_its_last_restart(launch):
    status, said = launch("crash", most=1, last_step=iter(range(9)).__next__)
    assert status == 1
    assert said.count("; restart 1 of 1\n") == 1
    assert "rank 1 of 2 failed first (exit status 1)" in said
    assert "[rank 1] ValueError: the third tensor is bad" in said
    assert said.endswith("triaxial: not restarted: it was restarted 1 times (--max-restarts)\n")


def test_a_start_without_progress_is_followed_by_a_pause(launch):
    """The cause may be temporary, such as a file server that reboots."""
    started_at = time.monotonic()
    _, said = launch("crash", most=1, pause_s=1.0)
    assert time.monotonic() - started_at > 1
    assert "; restart 1 of 1 in 1 s, because it got no further than the previous start\n" in said
    progress, pauses = RunProgress(7), []
    for step in (7, 7, 7, 9, 9):
        progress = progress.after(step)
        pauses.append(progress.pause_s(15))
    assert pauses == [15, 60, 240, 0, 15]


def test_a_run_without_progress_is_given_up(launch):
    status, said = launch("killed", most=100)
    assert status == 128 + signal.SIGKILL
    assert said.count("; restart ") == 3
    assert "rank 1 of 2 failed first (killed by SIGKILL" in said
    assert said.splitlines()[-1] == (
        "triaxial: not restarted: 4 starts in a row got to no step at all. Fix the cause, then start the run again"
    )


def test_a_rank_that_is_ended_after_the_save_fails_nothing(launch):
    """A signal to one rank: the first rank to leave has the launcher end the others, whose handlers may be gone."""
    status, said = launch("saved-and-slow", most=5)
    assert (status, said) == (75, "")


def test_a_mistake_is_not_restarted(launch):
    status, said = launch("mistake", most=5)
    message = "triaxial: error: model.d_model = 7 is not divisible by model.n_heads = 2; try 6 or 8\n"
    assert (status, said) == (2, message), "of both ranks, in one line"
    status, said = launch("mistake-when-restarted", most=5)
    lines = said.splitlines()
    assert (status, len(lines)) == (2, 2)
    assert "; restart 1 of 5" in lines[0]
    assert lines[1] == "triaxial: error: the recipe has changed meanwhile"


def test_a_full_disk_at_a_restart_is_waited_for_and_the_first_cause_is_kept(launch, tmp_path):
    """Start more often than the limit for starts without progress allows: only the time limit ends an outage."""
    (tmp_path / "full").write_text("2")
    status, said = launch("full-disk", most=1, outage_s=600.0)
    assert status == 0
    first, *lines = said.splitlines()
    cause = "rank 1 was killed by SIGKILL, perhaps out of memory at step ~0"
    assert first == f"triaxial: {cause}; restart 1 of 1"
    line = "triaxial: error: /scratch/run: no space left on device; 0 bytes are free"
    assert lines[::2] == [line, line]
    assert lines[1] == "triaxial: such faults for 0 of at most 600 s; the run starts again in 1 s"
    assert (tmp_path / "cause").read_text() == cause

    (tmp_path / "full").write_text("1000")
    status, said = launch("full-disk", most=1, outage_s=0.1)
    assert status == 1
    assert said.splitlines()[-1] == f"triaxial: the failure before: {cause}"
    assert line in said
    assert "its output is above" not in said


def test_pauses_grow_until_an_outage_is_over():
    outage, now, pauses = Outage(3600.0), 100.0, []
    while (outage := outage.after(is_fault=True, now=now)).pause_s:
        pauses.append(outage.pause_s)
        now += 10.0 + outage.pause_s
    assert pauses[:6] == [3.6, 7.2, 14.4, 28.8, 57.6, 60.0]
    assert 3600 <= now - 100.0 < 3680
    assert outage.is_over
    assert not outage.after(is_fault=False, now=now).pause_s
    assert outage.after(is_fault=False, now=now).after(is_fault=True, now=now).pause_s == 3.6


def test_every_checkpoint_of_a_run_that_logs_rarely_counts_as_progress(tmp_path):
    assert furthest_step(tmp_path) == 0
    (tmp_path / "checkpoints" / "step-000000070").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-000000060").mkdir()
    for logged, furthest in ((50, 70), (100, 100)):
        (tmp_path / "metrics.jsonl").write_text(f'{{"step": {logged}}}\n')
        assert furthest_step(tmp_path) == furthest


def test_rank_0_counts_starts_without_progress_under_torchrun(tmp_path):
    count_start(tmp_path, None, reached=500)
    for restart, reached in enumerate([520, 520, 520, 520], 1):  # the first of these got 20 steps further
        count_start(tmp_path, Restart(restart, 99), reached=reached)
    with pytest.raises(ConfigError, match=r"restart 5 of 99: 4 starts in a row got no further than step 520. Fix"):
        count_start(tmp_path, Restart(5, 99), reached=520)
    count_start(tmp_path, None, reached=520)  # the user has fixed the cause and starts the run again
    count_start(tmp_path, Restart(1, 99), reached=520)
    for _ in range(9):
        count_start(tmp_path, Restart(2, 99, "our launcher counts for itself"), reached=520)


def test_a_start_that_a_signal_ended_is_no_failed_one(tmp_path):
    count_start(tmp_path, None, reached=520, requeues=1)
    for requeues in range(2, 20):  # a preempted job, which comes no further than the imports
        assert count_start(tmp_path, None, reached=520, requeues=requeues, is_after_stop=True).starts == 0
    failed = [count_start(tmp_path, None, reached=520, requeues=requeues) for requeues in (20, 21, 22)]
    assert [progress.starts for progress in failed] == [1, 2, 3]
    stopped_and_restarted = count_start(tmp_path, Restart(1, 99), reached=530, requeues=23, is_after_stop=True)
    assert (stopped_and_restarted.furthest, stopped_and_restarted.starts) == (530, 0)
    restarted = count_start(tmp_path, Restart(2, 99), reached=530, requeues=23, is_after_stop=True)
    assert restarted.starts == 1, "a restart in place follows a crash"


@pytest.fixture(scope="module")
def runs(tiny_corpus, watched_ranks, launched, tmp_path_factory):
    """With parallel.data = 2: an undisturbed run, and one that is stopped twice by a signal and resumed by hand."""
    folder = tmp_path_factory.mktemp("runs")

    def run(name, directory, **more):
        words = [tiny_corpus.recipe, "--run.directory", folder / directory, *launched.QUIET, *STEPS]
        return {"name": name, "nproc": 2, "words": list(map(str, words)), **more}

    while_training = [{"rank": 1, "during": "step", "call": 6, "times": 1}]
    while_saving = [{"rank": rank, "during": "save", "call": 2, "times": 2} for rank in range(2)]
    plan = [run("undisturbed", "undisturbed"), run("first", "told", terms=while_training)]
    plan += [run("second", "told", terms=while_saving), run("third", "told")]
    return folder, watched_ranks.launch(folder, plan)


@pytest.mark.timeout(300)
def test_sigterm_to_one_rank_or_twice_during_a_save_loses_nothing(runs, launched):
    folder, seen = runs
    assert [seen[name]["status"] for name in ("first", "second", "third")] == [[75, 75], [75, 75], [0, 0]]
    assert "stopped by a signal at step 7" in seen["first"]["written"][0], "only rank 1 got the signal, in step 6"
    assert "resumed from" in seen["second"]["written"][0]
    assert "(step 7)" in seen["second"]["written"][0]
    assert "stopped by a signal at step 13" in seen["second"]["written"][0], "one step after the second save"
    assert "(step 13)" in seen["third"]["written"][0]
    assert launched.losses(folder / "told") == launched.losses(folder / "undisturbed")
    assert launched.saved(folder / "told") == launched.saved(folder / "undisturbed")


def names_of(job, listening):
    """The names of the programs of a run."""
    names = set()
    for pid in listening.family_of(job.process.pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            names.add(Path(f"/proc/{pid}/comm").read_text().strip())
    return names


def has_wandb(names):
    return any(name.startswith("wandb") for name in names)


@pytest.fixture(scope="module")
def killed(tiny_corpus, launched, listening, tmp_path_factory):
    """A run whose rank was killed once and restarted by our launcher, to its end; and observations while it ran."""
    chance = random.Random()
    rank, step = chance.randrange(2), chance.randrange(5, 20)
    words = ["--nproc", 2, "--max-restarts", 2, *STEPS, "--metrics.wandb", "offline"]
    with launched.Launched(tiny_corpus.recipe, tmp_path_factory.mktemp("killed") / "run", *words) as job:
        job.wait_for_step(1)
        os.kill(job.ranks()[1], signal.SIGSTOP)  # rank 0 waits for it while a thread starts W&B's process
        job.wait_for(lambda: has_wandb(names_of(job, listening)), what="W&B's process")
        everyone = listening.family_of(job.process.pid)
        ports, datagrams = listening.listeners(everyone), listening.udp_sockets(everyone)
        seen = {"ranks": set(job.ranks().values()), "everyone": set(everyone), "ports": ports, "udp": datagrams}
        seen["unix"] = listening.unix_sockets(everyone)
        seen["programs"] = names_of(job, listening)
        os.kill(job.ranks()[1], signal.SIGCONT)
        job.wait_for(lambda: job.told("checkpoint_saved"), what="a checkpoint")
        at = job.wait_for_step(step)
        job.kill(rank)
        status = job.end()
    return job, {**seen, "rank": rank, "killed_at": at, "status": status}


@pytest.mark.timeout(300)
def test_a_killed_rank_costs_only_the_steps_since_the_checkpoint(runs, killed, launched):
    undisturbed, (job, seen) = runs[0] / "undisturbed", killed
    assert seen["status"] == 0, (seen, job.errors())
    assert launched.losses(job.run) == launched.losses(undisturbed), seen
    assert launched.saved(job.run) == launched.saved(undisturbed), seen
    (resumed,) = job.told("restart")
    cause = f"rank {seen['rank']} was killed by SIGKILL, perhaps out of memory at step ~"
    assert resumed.startswith(f"restart 1 of 2 ({cause}")
    assert resumed in job.shown()
    from_step = int(resumed.partition("resumed from step ")[2].partition(",")[0])
    assert from_step % 4 == 0
    assert seen["killed_at"] - 12 < from_step, "a checkpoint every 4 steps; the newest may still be incomplete"
    assert f"resumed from {job.run}/checkpoints/step-{from_step:09}" in job.shown()
    assert f"triaxial: {cause}" in job.errors()
    assert "; restart 1 of 2\n" in job.errors()
    assert not launched.left_behind(job.run)


@pytest.mark.timeout(300)
def test_a_run_listens_only_on_the_loopback_interface(killed):
    _, seen = killed
    assert len(seen["ranks"]) == 2
    assert seen["ranks"] < seen["everyone"]
    assert len(seen["ports"]) >= 3, "the store of rank 0, and gloo on each rank"
    assert {address for address, _ in seen["ports"]} == {"127.0.0.1"}, seen["ports"]
    assert has_wandb(seen["programs"]), "W&B's own process was looked at too"
    assert not seen["udp"]
    assert not [path for path, open_to_others in seen["unix"] if open_to_others], seen["unix"]
