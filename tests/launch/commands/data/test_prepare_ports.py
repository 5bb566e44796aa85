"""`triaxial prepare --executor ray` without a cluster: the one that it starts answers nobody else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="the extra 'ray' is not installed")

ROOT = Path(__file__).resolve().parents[4]
OWNER = """
import sys
from argparse import Namespace
from pathlib import Path
from launch.commands.data.prepare import _how
args = Namespace(executor="ray", ray_address=None, share=None)
workers = _how(args, Path(sys.argv[1]))["executor"](1)
assert list(workers.run(str, [7])) == [(0, "7")]
import ray
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
workers.close()
"""
STRANGER = """
import sys
from ray._raylet import GcsClient  # the first thing that ray.init does; ray.init would try again for 25 s
print("joined", GcsClient(address=sys.argv[1]).cluster_id)
"""


@pytest.mark.timeout(200)
def test_a_cluster_of_this_machine_answers_its_owner_only(tmp_path, listening):
    """A stranger is a process without the token; that it has the same user here makes its attack only easier."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        address = owner.stdout.readline().strip()
        family = listening.family_of(owner.pid)
        ports, unix = listening.listeners(family), listening.unix_sockets(family)
        command = [sys.executable, "-c", STRANGER, address]
        wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
        tried = [
            subprocess.run(command, env=environment | token, capture_output=True, text=True, timeout=100)
            for token in ({}, wrong)
        ]
        owner.stdin.close()
        assert owner.wait(100) == 0
    assert len(ports) >= 5, "the cluster's own ports were seen"
    assert {host.removeprefix("::ffff:") for host, _ in ports} == {"127.0.0.1"}, ports
    assert len(unix) >= 2
    assert not [path for path, open_to_others in unix if open_to_others], unix
    for done in tried:
        assert done.returncode != 0
        assert "joined" not in done.stdout
        assert "AuthenticationError" in done.stderr, done.stderr
    assert not [path for path, _ in unix if Path(path).exists()], "its folder is gone"
