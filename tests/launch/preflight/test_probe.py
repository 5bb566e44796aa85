"""One rank alone tries an all-reduce in its forked process; test_rank.py has several."""

import subprocess
import sys
from pathlib import Path

import pytest
from free_ports import free_ports

from launch.preflight.probe import Attempt, ProbeResult

ROOT = Path(__file__).resolve().parents[3]
ALONE = """
import sys
from launch.preflight.board import open_store
from launch.preflight.probe import Attempt, try_all_reduce
from launch.processes.environment import ClusterEnvironment

port = int(sys.argv[1])
environment = ClusterEnvironment(rank=3, world_size=4, master_addr="127.0.0.1", master_port=port)
store = open_store(environment, serves=True, timeout_s=60, prefix="")
print(try_all_reduce(environment, Attempt(1, ((3,),), 4096, 60.0), backend="gloo"))
print(try_all_reduce(environment, Attempt(2, ((3, 2),), 4096, 1.0), backend="gloo"))
"""


@pytest.mark.timeout(200)
def test_a_rank_reduces_alone_and_waits_in_vain_for_another(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (port,) = free_ports(1)
    command = [sys.executable, "-c", ALONE, str(port)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150)
    alone, vain = done.stdout.splitlines()
    assert alone.startswith("ProbeResult(phase='end', error='', seconds="), done.stderr
    assert vain.startswith("ProbeResult(phase='join', error='"), "the reason is torch's or the limit"


@pytest.mark.parametrize(
    ("phase", "error", "own"),
    [
        ("compute", "CUDA error: out of memory", True),
        ("loop back", "Unable to find interface", True),
        ("join", "timed out", False),
        ("reduce", "Connection closed by peer", False),
        ("reduce", "its process ended: killed by SIGKILL, perhaps out of memory", True),
        ("end", "", False),
    ],
)
def test_only_a_failure_before_others_took_part_is_the_ranks_own(phase, error, own):
    assert ProbeResult(phase, error).is_own_fault is own


def test_a_rank_finds_its_group():
    attempt = Attempt.from_message({"number": 1, "groups": [[0, 2], [1]], "size_bytes": 8, "limit_s": 1.0})
    assert [attempt.group_of(rank) for rank in range(4)] == [(0, 2), (1,), (0, 2), ()]
