"""launch_local with real processes: terminal, error messages, signals, and no process left behind."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt.errors import ConfigError
from launch.processes.failures import SAVED_AFTER_SIGNAL
from launch.processes.local_launch import launch_local

HERE = Path(__file__).resolve().parents[1]
ROOT = HERE.parents[1]
TORCHRUN_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
LAUNCH = """
import sys
from launch.processes.local_launch import launch_local
words = sys.argv[1:]
sys.exit(launch_local(int(words[0]), words[1:], module="rank_program", grace_s=10))
"""


def child_environment(tmp_path: Path) -> dict[str, str]:
    """Our packages on the path, temporary files in `tmp_path`, and no variable of a launcher around the tests."""
    kept = {name: value for name, value in os.environ.items() if name not in (*TORCHRUN_NAMES, "OMP_NUM_THREADS")}
    (tmp_path / "tmp").mkdir(exist_ok=True)
    return {**kept, "PYTHONPATH": f"{ROOT}:{HERE}", "TMPDIR": str(tmp_path / "tmp")}


def launch(tmp_path: Path, nproc: int, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LAUNCH, str(nproc), *words, str(tmp_path)]
    environment = child_environment(tmp_path)
    return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)


def test_two_ranks_know_their_ranks_and_rank_0_keeps_the_terminal(tmp_path):
    terminal, child_end = pty.openpty()
    command = [sys.executable, "-c", LAUNCH, "2", "show", str(tmp_path)]
    process = subprocess.Popen(
        command, env=child_environment(tmp_path), cwd=tmp_path, stdout=child_end, stderr=child_end
    )
    os.close(child_end)
    output = b""
    while process.poll() is None or b"hello" not in output:
        try:
            output += os.read(terminal, 4096)
        except OSError:  # the last writer closed the terminal
            break
    assert process.wait(timeout=60) == 0
    assert output.decode().splitlines() == ["hello from rank 0", "a warning of rank 0"]
    first, second = ((tmp_path / f"rank{rank}").read_text().splitlines() for rank in range(2))
    assert "rank=0, local_rank=0, world_size=2, local_world_size=2, node_rank=0" in first[0]
    assert "rank=1, local_rank=1, world_size=2" in second[0]
    assert "master_addr='127.0.0.1'" in first[0]
    assert first[1] == f"OMP_NUM_THREADS={max(1, len(os.sched_getaffinity(0)) // 2)}"
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in second
    assert (first[-2], second[-2]) == ("isatty=True", "isatty=False")
    assert "safe_path=True" in first, "a folder in the user's working directory could shadow our packages"
    assert not list((tmp_path / "tmp").glob("triaxial_*"))


def test_a_mistake_of_one_rank_is_shown_although_the_other_ranks_stop_normally(tmp_path):
    result = launch(tmp_path, 2, "mistake-on-one")
    assert (result.returncode, result.stderr) == (2, "triaxial: error: rank one's disk is full\n")


def test_torchrun_without_our_launcher_shows_a_mistake_once(tmp_path):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "rank_program",
    ]
    environment = child_environment(tmp_path)
    result = subprocess.run(
        [*command, "mistake", str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("triaxial:")]
    assert len(lines) == 1
    assert "d_model = 7" in lines[0]


def test_a_crash_names_the_rank_and_shows_its_traceback(tmp_path):
    result = launch(tmp_path, 2, "crash")
    assert result.returncode == 1
    assert "rank 1 of 2 failed first (exit status 1)" in result.stderr
    assert "[rank 1] ValueError: the third tensor is bad" in result.stderr
    assert "torch/distributed" not in result.stderr
    assert "ChildFailedError" not in result.stderr
    folder = Path(result.stderr.splitlines()[-1].rpartition(": ")[2])
    assert (folder / "1" / "stderr.log").is_file()


@pytest.fixture
def waiting(tmp_path):
    """Start a launcher with two ranks that wait for a signal; the arguments are the launcher's command."""

    def start(*launcher: str, behaviour: str = "wait") -> tuple[subprocess.Popen[bytes], list[int]]:
        process = subprocess.Popen(
            [*launcher, behaviour, str(tmp_path)], env=child_environment(tmp_path), stderr=subprocess.DEVNULL
        )
        files = [tmp_path / f"pid{rank}" for rank in range(2)]
        wait_until(lambda: all(file.exists() for file in files))
        pids = [int(file.read_text()) for file in files]
        started.append((process, pids))
        return process, pids

    started: list[tuple[subprocess.Popen[bytes], list[int]]] = []
    yield start
    for process, pids in started:
        for pid in [process.pid, *pids]:
            if runs(pid):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def wait_until(condition) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("the condition was still false after a minute")


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_further_signals_do_not_interrupt_a_save(waiting, tmp_path):
    process, pids = waiting(sys.executable, "-c", LAUNCH, "2", behaviour="save-slowly")
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP):
        process.send_signal(number)
        wait_until(lambda: all((tmp_path / f"signal{rank}").exists() for rank in range(2)))
        time.sleep(0.3)
    assert all(runs(pid) for pid in pids)
    (tmp_path / "saved").touch()
    assert process.wait(timeout=60) == SAVED_AFTER_SIGNAL
    assert all((tmp_path / f"saved{rank}").exists() for rank in range(2))


@pytest.mark.parametrize("launcher", ["ours", "torchrun"])
def test_ranks_of_a_launcher_killed_with_minus_9_do_not_live_on(waiting, launcher):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "rank_program")
    process, pids = waiting(sys.executable, *(("-c", LAUNCH, "2") if launcher == "ours" else torchrun))
    assert all(runs(pid) for pid in pids)
    process.kill()
    wait_until(lambda: not any(runs(pid) for pid in pids))


def test_a_launch_restores_the_handlers_and_environment_of_this_process(tmp_path, monkeypatch):
    for name in (*TORCHRUN_NAMES, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{HERE}")
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "7")  # the user's own choice
    handlers, environment = [signal.getsignal(number) for number in signal.valid_signals()], dict(os.environ)
    assert launch_local(1, ["show", str(tmp_path)], threads_per_process=3, module="rank_program") == 0
    assert [signal.getsignal(number) for number in signal.valid_signals()] == handlers
    assert dict(os.environ) == environment
    seen = (tmp_path / "rank0").read_text().splitlines()
    assert "OMP_NUM_THREADS=3" in seen
    assert "MALLOC_MMAP_MAX_=7" in seen


def test_zero_processes_is_a_mistake():
    with pytest.raises(ConfigError, match="--nproc 0"):
        launch_local(0, ["show"])
