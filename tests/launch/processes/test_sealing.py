"""Strangers reach the ports of a run and send it pickles: without the seal they are executed, with it they are not."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from free_ports import free_ports

import launch.commands.doctor
import launch.main
from gpt.errors import ConfigError
from launch.processes.environment import JOB_SECRET
from launch.processes.sealing import Seal, new_secret, shared_secret
from parallel.errors import ForgedMessage

ROOT = Path(__file__).resolve().parents[3]
STRANGERS = ROOT / "tests" / "launch" / "strangers.py"


@pytest.fixture(scope="module")
def attacked():
    """(folder with the logs, victims as strangers.py prints them): two launchers and two runs under attack."""
    folder = Path(tempfile.mkdtemp(prefix="strangers_"))  # not tmp_path, which other users cannot enter
    folder.chmod(0o777)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        ports = map(str, free_ports(4))
        kept = {name: value for name, value in os.environ.items() if name not in (JOB_SECRET, "RANK", "WORLD_SIZE")}
        settings = {**kept, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, STRANGERS, folder, *ports]
        done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=200, check=True)
        yield folder, json.loads(done.stdout)


@pytest.mark.parametrize(("name", "executes"), [("torch", True), ("ours", False), ("plain", True), ("sealed", False)])
def test_a_strangers_pickle_runs_only_where_nothing_is_sealed(attacked, name, executes):
    folder, victims = attacked
    logs = "".join(f"\n== {path.name}\n{path.read_text()}" for path in sorted(folder.glob(f"*-{name}.log")))
    assert (folder / f"sent-{name}").exists(), f"the attack itself failed{logs}"
    canary = folder / f"executed-{victims[name][0]}"
    assert canary.exists() == executes, logs
    if executes:
        assert int(canary.read_text()) == os.getuid(), "as the owner of the run"


def test_a_forged_rendezvous_ends_the_launcher_in_one_line(attacked):
    folder, victims = attacked
    lines = (folder / "wait_for_a_second_node-ours.log").read_text().splitlines()
    assert [line for line in lines if line.startswith("triaxial: error: ")] == [
        "triaxial: error: somebody without the secret of this job wrote to its rendezvous; nothing of it was loaded. "
        "Either TRIAXIAL_JOB_SECRET differs on another node, or a stranger reaches the ports of the nodes. Set the "
        "same on every node, close the ports to others, then start the job again"
    ]
    assert victims["ours"][1] == 1
    assert "Traceback" not in "".join(lines)
    rank_0 = (folder / "be_rank_0-sealed.log").read_text()
    assert "parallel.errors.ForgedMessage: a message from the network has no valid seal of this job" in rank_0
    assert "PeerLost" not in rank_0, "no rank was lost"


def test_a_node_with_another_secret_is_one_line_and_no_restart(monkeypatch, capsys):
    """A command whose rank loads an object from a rank with another secret."""

    def load(args):
        Seal.of(new_secret(), "objects").open(Seal.of(new_secret(), "objects").close(b"an object"))

    monkeypatch.setattr(launch.commands.doctor, "run", load)
    assert launch.main.main(["doctor"]) == 2, "status 2 is not restarted"
    assert capsys.readouterr().err == (
        "triaxial: error: a message from the network has no valid seal of this job; it was not loaded. Either "
        "TRIAXIAL_JOB_SECRET differs on another node, or a stranger reaches the ports of the nodes. Set the same on "
        "every node, close the ports to others, then start the job again\n"
    )


def test_ranks_of_several_nodes_warn_if_they_are_not_sealed(attacked):
    folder, _ = attacked
    warning = f"triaxial: warning: {JOB_SECRET} is not set: anyone who reaches the ports of these nodes can run code"
    assert (folder / "be_rank_0-plain.log").read_text().count(warning) == 1
    assert warning not in (folder / "be_rank_0-sealed.log").read_text()


def test_a_seal_fits_its_message_key_and_purpose_only():
    secret = new_secret()
    seal = Seal.of(secret, "a purpose")
    sealed = seal.close(b"message")
    assert Seal.of(secret, "a purpose").open(sealed) == b"message"
    assert seal.open(seal.close(b"")) == b""
    for other in (Seal.of(new_secret(), "a purpose"), Seal.of(secret, "another")):
        with pytest.raises(ForgedMessage):
            other.open(sealed)
    for changed in (b"", sealed[:-1], sealed + b"x", sealed[:40] + b"M" + sealed[41:], bytes(32) + b"message"):
        with pytest.raises(ForgedMessage, match=r"^a message from the network has no valid seal of this job"):
            seal.open(changed)


def test_several_nodes_need_a_secret_that_nobody_guesses(monkeypatch):
    monkeypatch.delenv(JOB_SECRET, raising=False)
    with pytest.raises(ConfigError, match=r"^TRIAXIAL_JOB_SECRET is not set: the nodes of a run need a secret"):
        shared_secret()
    for secret, found in {
        "short": "5 characters, 5",
        "0" * 64: "64 characters, 1",
        "abc123" * 10: "60 characters, 6",
        "my dog is called Rex and he is eleven": "37 characters, 17",
    }.items():
        monkeypatch.setenv(JOB_SECRET, secret)
        with pytest.raises(ConfigError) as caught:
            shared_secret()
        assert str(caught.value) == (
            f"TRIAXIAL_JOB_SECRET has {found} of them distinct: the nodes of a run need a secret of at least 32 random "
            "hexadecimal or base64 characters. Set the same on every node, for example the output of "
            "`openssl rand -hex 32`"
        )
    monkeypatch.setenv(JOB_SECRET, secrets.token_urlsafe(32))
    assert shared_secret()
    monkeypatch.setenv(JOB_SECRET, new_secret())
    assert len(shared_secret()) == 64
