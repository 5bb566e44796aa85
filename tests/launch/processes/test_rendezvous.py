"""Ranks that are killed while a run starts: the others end in time, and the error names the dead rank."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from free_ports import free_ports

HERE = Path(__file__).resolve().parents[1]
ROOT = HERE.parents[1]
OURS = """
import sys
from launch.processes.local_launch import launch_local
sys.exit(launch_local(3, sys.argv[1:], module="rank_program", grace_s=10))
"""
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", "-m", "rank_program")
FAR_LONGER_THAN_THE_TEST_S = 3600


def environment(**more: str) -> dict[str, str]:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    return {**kept, "PYTHONPATH": f"{ROOT}:{HERE}", "OMP_NUM_THREADS": "1", **more}


@pytest.mark.parametrize(
    ("launcher", "how"), [("ours", "absent"), ("ours", "absent-0"), ("ours", "killed-joining"), ("torchrun", "absent")]
)
def test_a_local_launcher_ends_the_others_at_once(tmp_path, launcher, how):
    (tmp_path / "timeout_s").write_text(str(FAR_LONGER_THAN_THE_TEST_S))
    start = ("-c", OURS) if launcher == "ours" else TORCHRUN
    command = [sys.executable, *start, how, str(tmp_path)]
    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode != 0
    assert not list(tmp_path.glob("joined*"))
    victim = 0 if how == "absent-0" else 1
    if launcher == "ours":
        assert done.returncode == 128 + signal.SIGKILL
        assert f"rank {victim} of 3 failed first (killed by SIGKILL" in done.stderr
    else:
        cause = done.stderr.partition("Root Cause")[2]
        assert f"rank      : {victim} (" in cause, done.stderr
        assert "SIGKILL" in cause


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("absent", "rank 1 of 3 did not start within 15 s (run.collective_timeout_s"),
        ("killed-joining", "rank 1 of 3 died while the ranks joined (run.collective_timeout_s = 15)"),
        ("absent-0", "rank 0 did not start within 15 s (run.collective_timeout_s"),
        ("join", None),
    ],
)
def test_ranks_without_a_launcher_name_the_missing_rank(tmp_path, how, said):
    """As on several nodes, where the launcher of one node does not watch the ranks of another."""
    (tmp_path / "timeout_s").write_text("15" if said else "60")
    group = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
    command = [sys.executable, "-m", "rank_program", how, str(tmp_path)]
    ranks = [
        subprocess.Popen(
            command,
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **group),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    # start and imports take some seconds; a rank that waits far beyond its 15 s fails the test
    deadline = time.monotonic() + (45 if said else 100)
    try:
        errors = [rank.communicate(timeout=max(0.1, deadline - time.monotonic()))[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    if said is None:
        assert [(tmp_path / f"joined{rank}").read_text() for rank in range(3)] == ["3"] * 3
        return
    victim = 0 if how == "absent-0" else 1
    assert ranks[victim].returncode == -signal.SIGKILL
    for rank in {0, 1, 2} - {victim}:
        assert ranks[rank].returncode == 1
        assert errors[rank].splitlines()[-1].startswith(f"launch.processes.rendezvous.StartUpError: {said}"), errors[
            rank
        ]
