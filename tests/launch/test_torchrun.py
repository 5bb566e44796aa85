"""`python -m launch.torchrun`: ranks of one node restart in place, and nothing listens beyond loopback."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from free_ports import free_ports

import launch.torchrun
from launch.processes.environment import JOB_SECRET
from launch.processes.error_reports import last_word, leave_word

ROOT = Path(__file__).resolve().parents[2]
RANK = """
import sys, time
from pathlib import Path
import torch
import torch.distributed as dist
from launch.processes.environment import ClusterEnvironment, job_secret
from launch.processes.rendezvous import join_processes
from parallel.agreement import combine

here, folder = ClusterEnvironment.from_environment(), Path(sys.argv[1])
if here.restart is None and here.rank == 1:
    sys.exit(3)
join_processes(here, torch.device("cpu"), timeout_s=100)
(folder / f"joined{here.rank}").write_text(f"{combine(here.rank, list, None)} {here.restart} {job_secret()}")
while not (folder / "end").exists():
    time.sleep(0.05)
dist.destroy_process_group()
"""


ASKS = """
import os, socket, sys
from pathlib import Path

def binds(reuse):
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        try:
            one.bind((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
        except OSError:
            return False
        return True

Path(sys.argv[1], "binds").write_text(f"{binds(0)} {binds(1)}")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the port is only free at the start")
def test_the_port_of_rank_0_is_held_until_it_listens(tmp_path):
    """Ranks start for seconds, and meanwhile other programs open connections. Seen once in CI."""
    (tmp_path / "asks.py").write_text(ASKS)
    command = [sys.executable, "-m", "launch.torchrun", "--nproc-per-node", "1", "asks.py", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=100)
    assert (tmp_path / "binds").read_text() == "False True"


@pytest.mark.timeout(200)
def test_one_node_restarts_in_place_and_listens_on_loopback_only(tmp_path, listening, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("GLOO_SOCKET_IFNAME", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "rank.py").write_text(RANK)
    command = [sys.executable, "-m", "launch.torchrun", "--nproc-per-node", "2", "--max-restarts", "1"]
    with subprocess.Popen(
        [*command, "rank.py", str(tmp_path)], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as node:
        while node.poll() is None and len(list(tmp_path.glob("joined*"))) < 2:
            time.sleep(0.05)
        family = listening.family_of(node.pid)
        ports = listening.listeners(family)
        (tmp_path / "end").touch()
        errors = node.stderr.read()
    assert node.returncode == 0, errors
    joined = [(tmp_path / f"joined{rank}").read_text().rpartition(" ") for rank in range(2)]
    assert [text for text, _, _ in joined] == ["[0, 1] restart 1 of 1"] * 2
    assert len({secret for _, _, secret in joined}) == 1
    assert len(joined[0][2]) == 64, "a new secret for the two ranks"
    assert len(ports) >= 3, "the store of rank 0, and gloo on each rank"
    assert {address for address, _ in ports} == {"127.0.0.1"}, ports


STALE = """
import sys, time
from pathlib import Path
from launch.processes.environment import LauncherEnvironment
from launch.processes.error_reports import last_word, leave_word
from launch.processes.rank_process import stop_signals

here, folder = LauncherEnvironment.from_environment(), Path(sys.argv[1])
if here.local_rank == "1" and not here.restart_count:
    while not (folder / "handles").exists():
        time.sleep(0.02)
    sys.exit(3)
if here.local_rank == "0" and not here.restart_count:
    with stop_signals():
        (folder / "handles").touch()
        time.sleep(100)
if here.local_rank == "0":
    (folder / "before").write_text(last_word())
    leave_word("started")
    (folder / "trains").touch()
time.sleep(100)
"""


@pytest.mark.timeout(200)
def test_lost_work_after_a_restart_is_no_clean_stop(tmp_path, monkeypatch):
    """Rank 1 crashes before the first step, so torch elastic stops rank 0. The next start dies without a save."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TRIAXIAL_SAVED_FILE", str(tmp_path / "saved"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "rank.py").write_text(STALE)
    command = [sys.executable, "-m", "launch.torchrun", "--nproc-per-node", "2", "--max-restarts", "1"]
    with subprocess.Popen(
        [*command, "rank.py", str(tmp_path)], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as node:
        while node.poll() is None and not (tmp_path / "trains").exists():
            time.sleep(0.05)
        while node.poll() is None:  # further signals are ignored until the process is gone
            node.terminate()
            time.sleep(0.001)
        errors = node.stderr.read()
    assert node.returncode == 128 + signal.SIGTERM, errors
    assert errors == "triaxial: the launcher of this node got SIGTERM\n"
    assert (tmp_path / "before").read_text() == "", "a stale word of the start before"
    assert (tmp_path / "saved").read_text() == "started\n"
    assert not list((tmp_path / "temporary").iterdir())


def test_a_crash_before_the_first_step_is_no_stop_by_a_signal(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIAXIAL_SAVED_FILE", str(tmp_path / "saved"))
    leave_word("stopped by a signal before the first step")
    assert launch.torchrun._status_of_failures({75}, "") == 75
    assert last_word() == "stopped"
    assert launch.torchrun._status_of_failures({75, 3}, "rank 1 failed") == 1
    leave_word("stopped by a signal before the first step")  # rank 0, on another node, which shares the file
    assert (tmp_path / "saved").read_text() == "failed\n"


MEETINGS = """
import os, sys
from pathlib import Path
from launch import torchrun
from launch.processes.error_reports import leave_word
from launch.processes.sealing import new_secret

folder, port = Path(sys.argv[1]), sys.argv[2]
os.environ |= {"TRIAXIAL_JOB_SECRET": new_secret(), "TRIAXIAL_SAVED_FILE": str(folder / "saved")}

def meet(endpoint, settings):
    options = ["--nnodes", "2", "--rdzv-endpoint", endpoint, "--rdzv-conf", settings, "--local-addr", "127.0.0.1"]
    print(torchrun.main([*options, "--no-python", "true"]), flush=True)

meet("127.0.0.1:1", "is_host=0,read_timeout=1")
meet(f"127.0.0.1:{port}", "join_timeout=1")
leave_word("stopped by a signal before the first step")
meet(f"127.0.0.1:{port}", "join_timeout=1")
print(torchrun.main(["--max-restarts", "3", str(folder / "rank.py"), str(folder / "starts")]), flush=True)
"""
SAVES = """
import sys
from launch.processes.error_reports import leave_word
with open(sys.argv[1], "a") as file:
    file.write("x")
leave_word("saved after a signal")
sys.exit(75)
"""


@pytest.mark.timeout(200)
def test_nodes_that_do_not_meet_are_one_line_and_none_waits_for_others_after_a_save(tmp_path):
    (tmp_path / "meetings.py").write_text(MEETINGS)
    (tmp_path / "rank.py").write_text(SAVES)
    (port,) = free_ports(1)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "meetings.py", str(tmp_path), str(port)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "1", "75", "75"], done.stderr
    assert (tmp_path / "starts").read_text() == "x"
    lines = [line for line in done.stderr.splitlines() if line.startswith("triaxial: ")]
    first, waits = "2 nodes at 127.0.0.1:1", f"2 nodes at 127.0.0.1:{port}"
    assert lines == [
        f"triaxial: waiting for {first}",
        f"triaxial: error: cannot meet {first}: no launcher answers there. Start the node of that address first, and "
        "open its port",
        f"triaxial: waiting for {waits}",
        f"triaxial: error: cannot meet {waits}: not all came in time. Start the others, or look why they ended",
        f"triaxial: waiting for {waits}",
    ]
    assert "Traceback" not in done.stderr


def test_mistakes_are_one_line(monkeypatch, capsys):
    monkeypatch.delenv(JOB_SECRET, raising=False)
    missing = "--rdzv-endpoint is missing: must be HOST:PORT of one node, the same on every node"
    other = "is invalid: launch.torchrun has one kind of rendezvous, which numbers the nodes. Leave"
    for words, message in (
        (["--rdzv-endpoint", "h:1"], "TRIAXIAL_JOB_SECRET is not set: the nodes of a run need a secret of at least 32"),
        ([], missing),
        (["--standalone", "--rdzv-endpoint", "h:1"], missing),
        (["--rdzv-backend", "static"], f"--rdzv-backend = static {other} --rdzv-backend out"),
        (["--node-rank", "0"], f"--node-rank = 0 {other} --node-rank out"),
        (["--nnodes", "two"], "an option of torchrun is invalid: invalid literal for int() with base 10: 'two'. See"),
        (["--rdzv-endpoint", "h:1", "--nproc-per-node", "x"], "an option of torchrun is invalid: Unsupported nproc"),
        (["--master-addr", "h"], f"--master-addr = h {other} --master-addr out"),
    ):
        assert launch.torchrun.main(["--nnodes", "2", *words, "program.py"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith(f"triaxial: error: {message}")


def test_a_mistake_keeps_its_status_if_nobody_can_read_it():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "launch.torchrun", "--nnodes", "2", "program.py"]
        assert subprocess.run(command, cwd=ROOT, stderr=full).returncode == 2


AT_A_BAD_MOMENT = """
import os, signal, sys, time
from pathlib import Path
from types import SimpleNamespace
from launch import torchrun
from launch.processes.error_reports import leave_word
from torch.distributed.elastic.metrics import api

folder = Path(sys.argv[1])

def clock():
    if (folder / "runs").exists():
        leave_word("saved after a signal")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    return time.time()

api.time = SimpleNamespace(time=clock)  # torch elastic reads it in a `try` whose `finally` needs the result
sys.exit(torchrun.main([str(folder / "rank.py"), str(folder)]))
"""
RUNS = "import pathlib, sys, time; pathlib.Path(sys.argv[1], 'runs').touch(); time.sleep(100)"


@pytest.mark.timeout(200)
def test_a_signal_behind_another_error_of_torch_elastic_counts(tmp_path):
    """Its `finally` then fails with an UnboundLocalError, which said nothing of the signal."""
    (tmp_path / "program.py").write_text(AT_A_BAD_MOMENT)
    (tmp_path / "rank.py").write_text(RUNS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRIAXIAL_SAVED_FILE": str(tmp_path / "saved")}
    done = subprocess.run(
        [sys.executable, "program.py", str(tmp_path)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (75, "triaxial: the launcher of this node got SIGTERM\n")
