"""The options of `triaxial doctor --nodes`, and a preflight of two launchers that meet as a job's nodes do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from free_ports import free_ports

from gpt.errors import ConfigError
from launch.main import main
from launch.preflight.nodes import TOGETHER_FAILED, Check

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nodes": "0"}, "--nodes 0 is invalid"),
        ({"nodes": ","}, "--nodes , is invalid"),
        ({"endpoint": None}, "--rdzv-endpoint is missing"),
        ({"nproc_per_node": 0}, "--nproc-per-node 0 is invalid"),
        ({"limit_s": 0.5}, "--limit-s 0.5 is invalid"),
        ({"limit_s": float("nan")}, "--limit-s nan is invalid"),
        ({"limit_s": float("inf")}, "--limit-s inf is invalid"),
        ({"bad_nodes": Path("/gone/bad")}, "--bad-nodes /gone/bad is invalid: /gone is no folder"),
    ],
)
def test_a_wrong_option_is_refused(change, said):
    given = {"nodes": "a,b", "endpoint": "a:29500", "nproc_per_node": 1, "limit_s": 60.0, "bad_nodes": None}
    assert Check(**given).count == 2
    with pytest.raises(ConfigError, match=said):
        Check(**given | change)


def test_a_missing_secret_is_the_first_line(capsys, monkeypatch):
    """Before the facts of the node, which take seconds."""
    monkeypatch.delenv("TRIAXIAL_JOB_SECRET", raising=False)
    assert main(["doctor", "--nodes", "2", "--rdzv-endpoint", "a:29500"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "TRIAXIAL_JOB_SECRET is not set" in said.err


def test_options_of_several_nodes_need_their_number(capsys):
    assert main(["doctor", "--rdzv-endpoint", "a:29500"]) == 2
    assert "--rdzv-endpoint is only for a check of several nodes. Add --nodes N" in capsys.readouterr().err


@pytest.mark.timeout(300)
def test_a_launcher_with_another_endpoint_is_named_as_missing(tmp_path):
    """Two nodes are expected, and each waits where the other does not come."""
    program = "import sys; from launch.preflight.nodes import *; check = Check('a,b', sys.argv[1], 1, 10.0, None)"
    command = [sys.executable, "-c", f"{program}; sys.exit(check_nodes(check))"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment["TRIAXIAL_JOB_SECRET"] = "0123456789abcdef" * 4
    nodes = {
        name: subprocess.Popen(
            [*command, f"127.0.0.1:{port}"],
            env=environment | {"SLURMD_NODENAME": name},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, port in zip("ab", free_ports(2), strict=True)
    }
    for (name, node), other in zip(nodes.items(), "ba", strict=True):
        said = node.communicate(timeout=250)[0]
        assert node.returncode == TOGETHER_FAILED, said
        assert f"node {name}: problem: node {other} did not come to the rendezvous. See its output\n" in said
        assert "all-reduce: 1 rank on 1 node (gloo)" in said, f"node {name} goes on without the other"
        assert "Traceback" not in said
