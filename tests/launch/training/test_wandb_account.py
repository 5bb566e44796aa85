"""A run that asks to record online is refused without a usable key before anything starts. The client is real."""

import os
import socket
import subprocess
import sys

import pytest

CHECK = """
import sys
from launch.config.run_config import read_run_config
from launch.training.wandb_account import check_wandb_account
check_wandb_account(read_run_config("gpt3_125m", ["--metrics.wandb", sys.argv[1], "--run.directory", sys.argv[2]]))
print("accepted", "wandb" in sys.modules)
"""
KEY = "0123456789" * 4
UNREACHABLE = "http://127.0.0.1:9"


def checked(tmp_path, mode="online", **settings):
    """The last line of a check in a process of its own, which finds none of this person's keys."""
    home = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_BASE_URL": UNREACHABLE, "PATH": "/usr/bin"}
    words = [sys.executable, "-c", CHECK, mode, str(tmp_path / "run")]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**home, **settings},
        stdin=subprocess.DEVNULL,
    )
    return (done.stdout + done.stderr).strip().splitlines()[-1]


def test_a_missing_key_is_told_with_what_to_do(tmp_path):
    line = checked(tmp_path)
    assert "metrics.wandb = 'online' is invalid: Weights & Biases has no API key here. Run `wandb login`" in line
    assert "--metrics.wandb offline" in line


def test_a_key_of_the_wrong_form_is_told_without_the_key(tmp_path):
    line = checked(tmp_path, WANDB_API_KEY="hunter2")
    assert "is invalid: WANDB_API_KEY invalid: API key must have 40+ characters, has 7. Run `wandb login`" in line
    assert "hunter2" not in line


@pytest.mark.parametrize(
    ("mode", "settings"),
    [("online", {"WANDB_API_KEY": KEY}), ("offline", {}), ("disabled", {}), ("online", {"WANDB_MODE": "offline"})],
)
def test_a_key_in_a_variable_and_runs_that_need_none_are_accepted_without_a_network(tmp_path, mode, settings):
    assert checked(tmp_path, mode, **settings) == "accepted False"


def test_a_key_in_netrc_is_accepted(tmp_path):
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1:9\n  login user\n  password {KEY}\n")
    (tmp_path / "netrc").chmod(0o600)
    assert checked(tmp_path) == "accepted False"


def test_a_run_that_continues_is_not_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 3, "loss": 5.0}\n')
    assert checked(tmp_path) == "accepted False"


def test_a_run_that_saved_before_its_first_logged_step_is_not_refused(tmp_path):
    (tmp_path / "run" / "checkpoints" / "step-000000003").mkdir(parents=True)
    assert checked(tmp_path) == "accepted False"


def test_the_service_is_not_asked_who_has_the_key(tmp_path):
    """A firewall that drops packets would delay each start, and another process would live as long as the run."""
    with socket.create_server(("127.0.0.1", 0)) as service:
        service.setblocking(False)
        address = f"http://127.0.0.1:{service.getsockname()[1]}"
        assert checked(tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=address) == "accepted False"
        with pytest.raises(BlockingIOError):
            service.accept()


def test_a_client_that_was_set_offline_is_not_said_to_lack_its_key(tmp_path):
    """`wandb offline` writes the mode to its settings."""
    (tmp_path / "settings").write_text("[default]\nmode = offline\n")
    assert checked(tmp_path, WANDB_API_KEY=KEY, WANDB_CONFIG_DIR=str(tmp_path)) == "accepted False"


def test_no_temporary_folder_of_the_client_is_left(tmp_path):
    system = tmp_path / "tmp"
    system.mkdir()
    assert checked(tmp_path, WANDB_API_KEY=KEY, TMPDIR=str(system)) == "accepted False"
    assert not [name for name in os.listdir(system) if "wandb" in name]
