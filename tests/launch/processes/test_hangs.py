"""Ranks that really hang or die: all ranks end, the culprit is named, and the run restarts and finishes alone."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[1]
ROOT = HERE.parents[1]
LAUNCH = """
import sys
from pathlib import Path
from gpt.telemetry.output import own_output
from launch.processes.local_launch import launch_local
from launch.processes.restarts import RestartPolicy, last_logged_step
own_output(waits=False)
nproc, restarts, run, *words = sys.argv[1:]
policy = RestartPolicy(int(restarts), lambda: last_logged_step(Path(run)))
sys.exit(launch_local(int(nproc), words, module="hang_program", restarts=policy))
"""
CANARY = "canary-of-a-secret-in-the-environment"
LAYOUTS = {"data": [], "tensor": ["--parallel.tensor", "2"], "pipeline": ["--parallel.pipeline", "2"]}
# fault of a rank: kinds of verdict that are right, and the function that must be on the rank's stack
FOUND = {
    # gloo ends a rank that receives more than it asked for: this one or a peer; else this one has issued fewer
    "skip": (("skipped", "died", "behind"), ""),
    "loop": (("busy",), "python_loop"),
    "gil": (("busy",), "hold_the_lock"),
    "stop": (("stopped",), "in stop"),
    "data": (("busy",), "read_what_never_comes"),
    "kill": (("died",), ""),
    "crash": (("failed",), ""),
    "freeze": (("stopped",), ""),  # seen by the other monitor, because both are on one machine
    "alone": (("stopped",), ""),
}


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of ranks. It names the folder, by which we find processes that are left behind."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    own = {"PYTHONPATH": f"{ROOT}:{HERE}", "OMP_NUM_THREADS": "1", "TEST_OF_HANGS": str(folder)}
    return {**kept, **own, "HF_TOKEN": CANARY, "AWS_SECRET_ACCESS_KEY": CANARY}


def words_of(corpus, run: Path, *, timeout_s: float) -> list[str]:
    words = ["train", str(corpus.recipe), "--run.directory", str(run), "--metrics.wandb", "disabled"]
    words += ["--run.peak_flops_per_s", "1e12", "--health.hang_timeout_s", str(timeout_s)]
    return [*words, "--health.first_step_timeout_s", "120", "--health.saving_timeout_s", "120"]


def start(
    corpus, folder: Path, faults: str, *words: str, restarts: int = 0, timeout_s: float = 8.0, output=None
) -> subprocess.Popen:
    """Start a launcher that trains on two ranks, with one fault per start.

    Its output goes to FOLDER/said.txt, or to `output`, two descriptors.
    """
    folder.mkdir(exist_ok=True)
    run = folder / "run"
    command = [sys.executable, "-c", LAUNCH, "2", str(restarts), str(run), faults]
    command += [*words_of(corpus, run, timeout_s=timeout_s), *words]
    with (folder / "said.txt").open("w") as said:
        stdout, stderr = output or (said, said)
        return subprocess.Popen(command, env=environment(folder), cwd=folder, stdout=stdout, stderr=stderr)


def launch(corpus, folder: Path, faults: str, *words: str, restarts: int = 0):
    """Run `start` to its end. Return the run directory, the exit status and the output."""
    launcher = start(corpus, folder, faults, *words, restarts=restarts)
    try:
        status = launcher.wait(timeout=1500)
    finally:
        launcher.kill()
    for path in folder.rglob("*"):  # stacks, reports, verdict, events, output
        assert not (path.is_file() and CANARY.encode() in path.read_bytes()), path
    return folder / "run", status, (folder / "said.txt").read_text()


def left_behind(folder: Path) -> dict[int, str]:
    """Return the processes of a run that still exist: ranks, monitors, or anything else that they started."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"TEST_OF_HANGS={folder}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def check_nothing_is_left(folder: Path) -> None:
    ends_at = time.monotonic() + 60  # a monitor may outlive its rank by a few seconds
    while (left := left_behind(folder)) and time.monotonic() < ends_at:
        time.sleep(0.2)
    assert not left


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_reports(folder: Path, kind: str, rank: int, step: int) -> None:
    """Check that the verdict names the rank, and that the reports show where every rank was."""
    verdict = json.loads((folder / "verdict.json").read_text())
    findings, function = FOUND[kind]
    assert verdict["ranks"] == [rank], (kind, verdict["lines"])
    assert verdict["kind"] in findings, (kind, verdict["lines"])
    host = os.uname().nodename
    steps = (
        (step, step + 1) if kind == "skip" else (step,)
    )  # a rank that left one out continues, until one does not match
    if kind in ("freeze", "alone"):  # its monitor is stopped or gone as well
        assert not (folder / f"rank-{rank:05}.json").exists()
        assert f"  rank {rank} runs on {host}" in verdict["lines"]
    else:
        assert f"rank {rank} ({host}, pid " in verdict["lines"][0]
        assert any(f"in step {number} (" in verdict["lines"][0] for number in steps)
    for file in folder.glob("rank-*.json"):
        report = json.loads(file.read_text())
        assert report["host"] == host
        assert report["step"] in steps, (kind, report)
        if report["status"] not in ("died", "failed"):  # nothing more is known of those that are gone
            assert report["frames"], (kind, report)
            assert report["last"]["kind"], (kind, report)
            assert "most recent call first" in file.with_suffix(".txt").read_text()
        if report["rank"] == rank:
            assert function in " ".join(report["frames"]), report["frames"]


def check_run(run: Path, status: int, said: str, faults: list[tuple[str, int, int]], *, steps: int) -> None:
    """Check that every fault of a launch was found, reported and survived."""
    assert status == 0, said[-6000:]
    folders = sorted(path for path in (run / "hangs").iterdir() if path.is_dir())
    assert len(folders) == len(faults), said[-6000:]
    for folder, (kind, rank, step) in zip(folders, faults, strict=True):
        check_reports(folder, kind, rank, step)
        if kind != "crash":  # the launcher reports it: the monitor may have released the terminal
            assert json.loads((folder / "verdict.json").read_text())["lines"][0] in said
        else:
            assert re.search(r"ValueError: the third tensor is bad.*; restart ", said)
    events = lines(run / "events.jsonl")
    assert [event["ranks"] for event in events if event["kind"] == "hang"] == [[rank] for _, rank, _ in faults]
    assert sum(event["kind"] == "restart" for event in events) == len(faults)
    assert events[-1]["kind"] == "ended"
    losses = [line for line in lines(run / "metrics.jsonl") if "loss" in line]
    assert losses[-1]["step"] == steps
    assert not list((run / "hangs").glob("*/.*")), "no file is half written"


def test_the_run_survives_two_hangs_with_the_culprit_named_and_a_slow_run_is_left_alone(tiny_corpus, tmp_path):
    """Two hangs in one launch. Meanwhile, another run has phases that may take longer than hang_timeout_s, and do."""
    slow, hung = tmp_path / "slow", tmp_path / "hung"
    slow.mkdir()
    command = [sys.executable, "-m", "hang_program", "slow:7", *words_of(tiny_corpus, slow / "run", timeout_s=6)]
    command += ["--train.total_tokens", "2048", "--train.validation_tokens", "640"]
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]  # this run has no output at all
    slow_run = subprocess.Popen([*closed, *command], env=environment(slow), cwd=slow)
    try:
        faults = [("alone", 0, 7), ("gil", 1, 10)]
        run, status, text = launch(tiny_corpus, hung, "alone:0:7,gil:1:10", restarts=2)
        check_run(run, status, text, faults, steps=12)
        assert "; restart 1 of 2\n" in text
        assert "; restart 2 of 2\n" in text
        check_nothing_is_left(hung)
        assert slow_run.wait(timeout=200) == 0
    finally:
        slow_run.kill()
    assert not (slow / "run" / "hangs").exists()
    check_nothing_is_left(slow)


def test_output_that_is_broken_or_not_read_changes_no_verdict_and_no_restart(tiny_corpus, tmp_path):
    (reader, unread), (closed, broken) = os.pipe(), os.pipe()
    os.close(closed)
    os.set_blocking(unread, False)
    with suppress(BlockingIOError):
        while True:
            os.write(unread, bytes(4096))
    os.set_blocking(unread, True)
    try:
        launcher = start(tiny_corpus, tmp_path, "kill:1:5", restarts=1, output=(unread, broken))
        status = launcher.wait(timeout=600)
    finally:
        launcher.kill()
        for fd in (reader, unread, broken):
            os.close(fd)
    first_line = json.loads(next((tmp_path / "run" / "hangs").glob("*/verdict.json")).read_text())["lines"][0]
    check_run(tmp_path / "run", status, first_line, [("kill", 1, 5)], steps=12)
    check_nothing_is_left(tmp_path)


@pytest.mark.rehearse
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_kind_of_fault_on_every_axis(tiny_corpus, tmp_path, layout):
    """All faults one after the other in one run, which ends with the same losses as a run without faults."""
    words = [*LAYOUTS[layout], "--train.total_tokens", "20480", "--checkpoint.keep_last", "2"]
    faults = [(kind, number % 2, 7 + 4 * number) for number, kind in enumerate(FOUND)]
    plan = ",".join(f"{kind}:{rank}:{step}" for kind, rank, step in faults)
    folder, calm = tmp_path / "hung", tmp_path / "calm"
    run, status, said = launch(tiny_corpus, folder, plan, *words, restarts=len(faults))
    check_run(run, status, said, faults, steps=40)
    for pid in left_behind(folder):
        os.kill(pid, signal.SIGCONT)  # the frozen machine wakes up: its monitor finds that its rank is gone
    check_nothing_is_left(folder)
    undisturbed, status, said = launch(tiny_corpus, calm, "none:0:0", *words)
    assert status == 0, said
    assert losses(run) == losses(undisturbed)


def losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in lines(run / "metrics.jsonl") if "loss" in line}


@pytest.mark.rehearse
def test_ranks_end_and_print_where_they_are_even_if_no_report_can_be_written(tiny_corpus, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "hangs").write_text("no folder")
    run, status, said = launch(tiny_corpus, tmp_path, "gil:0:6")
    assert status == 128 + signal.SIGKILL
    check_nothing_is_left(tmp_path)
    assert "rank 0 is at: launch/hang_program.py:" in said
    assert "last collective of rank 0: all_" in said
    assert f"no reports could be exchanged in {run / 'hangs'} (" in said


@pytest.fixture
def frozen(tmp_path):
    """A folder with the run directory "run", whose "hangs" is a frozen file system: every write there waits until the
    test is over, and ignores signals."""
    image, hangs = tmp_path / "image", tmp_path / "hung" / "run" / "hangs"
    hangs.mkdir(parents=True)

    def run(*words: object) -> None:
        subprocess.run([*map(str, words)], check=True, capture_output=True, text=True, timeout=60)

    with ExitStack() as stack:
        try:
            run("truncate", "-s", "16M", image)
            run("mkfs.ext4", "-q", image)
            run("mount", "-o", "loop", image, hangs)
            stack.callback(run, "umount", "--lazy", hangs)  # a monitor that was frozen is about to end
            run("fsfreeze", "-f", hangs)
            stack.callback(run, "fsfreeze", "-u", hangs)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"tests cannot freeze a file system on this machine ({getattr(error, 'stderr', '') or error})")
        yield tmp_path / "hung"


@pytest.mark.rehearse
def test_ranks_end_even_if_the_file_system_does_not_answer(tiny_corpus, frozen):
    """As when a file server is gone: monitors block when they report there, and still end the ranks."""
    run, status, said = launch(tiny_corpus, frozen, "loop:1:6")
    assert status == 128 + signal.SIGKILL
    assert "in step 6 (training); no verdict on which rank is to blame" in said
    assert f"no reports could be exchanged in {run / 'hangs'} (no answer in time)" in said


@pytest.mark.rehearse
def test_ranks_and_monitors_end_with_their_launcher_and_report_no_hang(tiny_corpus, tmp_path):
    launcher = start(tiny_corpus, tmp_path, "none:0:0", "--train.total_tokens", str(512 * 10000))
    run = tmp_path / "run"
    ends_at = time.monotonic() + 200
    while not ((run / "metrics.jsonl").exists() and len(lines(run / "metrics.jsonl")) > 3):
        assert time.monotonic() < ends_at
        time.sleep(0.1)
    assert len(left_behind(tmp_path)) >= 5, "a launcher, two ranks, two monitors"
    launcher.kill()  # not waited for: it stays a zombie
    check_nothing_is_left(tmp_path)
    launcher.wait()
    assert not (run / "hangs").exists()
