"""A preflight of three nodes in network namespaces, where one link is dead or one node is slow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from namespaces import SUBNET, ip, three_machines

ROOT = Path(__file__).resolve().parents[3]


def preflight(spaces, folder):
    """(exit statuses, outputs, lines about bad nodes) of the ranks of nodes n0, n1, n2."""
    bad = folder / "bad"
    command = [sys.executable, "-m", "launch.preflight.rank", "--nodes", "n0,n1,n2", "--limit-s", "30"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "wire"}
    environment |= {"WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": f"{SUBNET}.1"}
    environment |= {"MASTER_PORT": "29511", "TRIAXIAL_JOB_SECRET": "0123456789abcdef" * 4}
    nodes = [
        subprocess.Popen(
            ["ip", "netns", "exec", space, *command, "--bad-nodes", str(bad)],
            env=environment | {"RANK": str(rank), "GROUP_RANK": str(rank), "SLURMD_NODENAME": f"n{rank}"},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank, space in enumerate(spaces)
    ]
    said = [node.communicate(timeout=250)[0] for node in nodes]
    return [node.returncode for node in nodes], said, bad.read_text().splitlines() if bad.exists() else []


@pytest.mark.rehearse
@pytest.mark.timeout(300)
def test_two_nodes_without_a_way_to_each_other_are_named_and_one_is_left_out(tmp_path):
    with three_machines() as (spaces, _):
        ip("-n", spaces[1], "route", "add", "blackhole", f"{SUBNET}.3/32")
        codes, said, bad = preflight(spaces, tmp_path)
    assert codes == [2, 2, 2]
    assert said[0] == said[1] == said[2]
    assert "problem: nodes n1 and n2 cannot reduce together, though each can alone: " in said[0]
    assert "without the bad nodes: all-reduce: 2 ranks on 2 nodes (gloo), " in said[0]
    assert [line.partition("\t")[0] for line in bad] == ["n2"]


@pytest.mark.rehearse
@pytest.mark.timeout(300)
def test_a_node_with_a_slow_network_is_named(tmp_path):
    with three_machines() as (spaces, _):
        limit = ["tbf", "rate", "20mbit", "burst", "32kbit", "latency", "400ms"]
        subprocess.run(["tc", "-n", spaces[2], "qdisc", "add", "dev", "wire", "root", *limit], check=True)
        codes, said, _ = preflight(spaces, tmp_path)
    assert codes == [0, 0, 0], "on the CPU a warning: others may use the network"
    assert "warning: node n2 is slow with every other node\n" in said[0]
