"""Ranks of a preflight as processes of this machine, some of them broken. One program forks the ranks of all cases."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from free_ports import free_ports
from torch.distributed import HashStore

from launch.preflight.board import Board
from launch.preflight.coordinator import SIZE_BYTES, Findings
from launch.preflight.rank import _compare_folders

ROOT = Path(__file__).resolve().parents[3]
# Rank 2 of each case is in trouble: it never starts, has a wrong network interface, or ends while the ranks talk.
PROGRAM = """
import json, multiprocessing, os, signal, sys, threading, time
from pathlib import Path
import torch, torch.distributed
from launch.preflight import rank as program

def hurt(signal_number):
    while not multiprocessing.active_children():  # the first attempt at an all-reduce
        time.sleep(0.01)
    os.kill(os.getpid(), signal_number)

def start(case, folder, port, trouble, number, nodes):
    folder.mkdir(exist_ok=True)
    pid = os.fork()
    if pid:
        return pid
    output = os.open(folder / f"said{number}", os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1), os.dup2(output, 2)
    os.environ |= {"RANK": str(number), "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"GROUP_RANK": str(number), "SLURMD_NODENAME": "abc"[number], "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo", "TRIAXIAL_JOB_SECRET": "0123456789abcdef" * 4}
    if number == trouble.get("rank"):
        if trouble["kind"] == "absent":
            os._exit(0)
        if trouble["kind"] == "address":
            os.environ["GLOO_SOCKET_IFNAME"] = "nowhere"
        if trouble["kind"] in ("SIGKILL", "SIGSTOP"):
            threading.Thread(target=hurt, args=(getattr(signal, trouble["kind"]),)).start()
    if case == "sound" and number == 0:
        program.MARGIN_S = 0.5 - 60  # another rank with this margin would end after one second
    words = ["--nodes", nodes, "--limit-s", "60" if case == "sound" else "15", "--folder", str(folder)]
    os._exit(program.main([*words, "--bad-nodes", str(folder / "bad")]))

folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
ranks = {}
for case, trouble, port in cases:
    for number in range(3):
        ranks[start(case, folder / case, port, trouble, number, trouble.get("nodes", "a,b,c"))] = (case, number)
codes = {}
stopped = {pid for pid, (case, number) in ranks.items() if case == "stopped" and number == 2}
while len(codes) < len(ranks) - len(stopped):
    pid, status = os.wait()
    case, number = ranks[pid]
    codes[f"{case} {number}"] = os.waitstatus_to_exitcode(status)
for pid in stopped:
    os.kill(pid, signal.SIGKILL)
print(json.dumps(codes))
"""
CASES = {
    "sound": {},
    "absent": {"kind": "absent", "rank": 2},
    "address": {"kind": "address", "rank": 2},
    "killed": {"kind": "SIGKILL", "rank": 2},
    "stopped": {"kind": "SIGSTOP", "rank": 2},
    "without_rank_0": {"kind": "SIGKILL", "rank": 0},
    "too_few": {"nodes": "a,b,c,d,"},
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """(exit statuses by case and rank, the folder with a folder of each case)."""
    folder = tmp_path_factory.mktemp("preflight")
    cases = [
        (case, trouble, str(port)) for (case, trouble), port in zip(CASES.items(), free_ports(len(CASES)), strict=True)
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(folder), json.dumps(cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), folder


def said(ended, case, rank=0):
    """The output of a rank without the warnings of torch's C++."""
    lines = (ended[1] / case / f"said{rank}").read_text().splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("[W"))


def verdict(ended, case, rank=0):
    """The lines of a node without its label, which begins each."""
    lines = said(ended, case, rank).splitlines()
    label = f"node {'abc'[rank]}: "
    assert all(line.startswith(label) for line in lines)
    return [line.removeprefix(label) for line in lines]


@pytest.mark.timeout(300)
def test_sound_nodes_pass_and_say_how_fast_they_are(ended):
    codes, folder = ended
    assert [codes[f"sound {rank}"] for rank in range(3)] == [0, 0, 0], said(ended, "sound")
    size = SIZE_BYTES["gloo"] >> 20
    assert f"all-reduce: 3 ranks on 3 nodes (gloo), {size} MiB in " in said(ended, "sound")
    assert "pairs of nodes: " in said(ended, "sound")
    assert "problem: " not in said(ended, "sound")
    assert verdict(ended, "sound") == verdict(ended, "sound", 1)
    assert [path.name for path in (folder / "sound").iterdir() if path.name.startswith((".", "bad"))] == []


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("absent", "node c did not come to the rendezvous"),
        ("address", "node c: rank 2 failed at phase 'loop back': "),
        ("killed", "node c: rank 2 does not answer"),
        ("stopped", "node c: rank 2 does not answer"),
    ],
)
def test_a_broken_node_is_named_and_the_others_work_without_it(ended, case, reason):
    codes, folder = ended
    assert [codes[f"{case} {rank}"] for rank in range(2)] == [2, 2], said(ended, case)
    assert f"problem: {reason}" in said(ended, case)
    assert "all-reduce: 2 ranks on 2 nodes" in said(ended, case)
    assert verdict(ended, case) == verdict(ended, case, 1), "each node has the verdict in its log"
    lines = (folder / case / "bad").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["c"]
    assert reason in lines[0]


def test_ranks_that_lose_rank_0_say_so(ended):
    codes, _ = ended
    assert [codes[f"without_rank_0 {rank}"] for rank in range(3)] == [-9, 2, 2]
    for rank in (1, 2):
        assert "problem: no answer from rank 0 at 127.0.0.1:" in said(ended, "without_rank_0", rank)


def test_a_node_that_was_expected_and_did_not_come_is_named(ended):
    codes, folder = ended
    assert [codes[f"too_few {rank}"] for rank in range(3)] == [2, 2, 2]
    assert "problem: node d did not come to the rendezvous" in said(ended, "too_few")
    (line,) = (folder / "too_few" / "bad").read_text().splitlines()
    assert line.startswith("d\tnode d did not come"), "no name follows the last comma"


def test_a_folder_that_rank_0_cannot_write_is_a_problem_of_its_node(tmp_path):
    board, findings = Board(HashStore(), None), Findings()
    _compare_folders(board, {0: {"node": 0}}, tmp_path / "gone", names={0: "a"}, findings=findings)
    assert list(findings.bad_nodes) == ["a"]
    assert findings.problems == [f"node a cannot write a file in {tmp_path / 'gone'}: no such file or directory"]
