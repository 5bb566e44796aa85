"""Whether Weights & Biases has a key, before a run that asks to record online starts. Uses no network."""

import subprocess
import sys
from contextlib import suppress

from gpt.errors import ConfigError, one_line
from launch.config.run_config import RunConfig
from launch.processes.environment import shown_settings
from launch.runs.history import furthest_step
from parallel.checkpoint.folders import list_checkpoints

_LIMIT_S = 200  # the client's import takes a second, but minutes from a slow file server
_MARK = "fault of the key: "  # the client may print before it
# If it is not silent, `login` asks the service for the user's name. If its settings say offline, it looks for no key.
_FAULT = f"""
import os
os.environ.update(WANDB_SILENT="true", WANDB_MODE="online")
import wandb
try:
    fault = "" if wandb.login(prompt=False, verify=False) else "Weights & Biases has no API key here"
except wandb.errors.AuthenticationError as error:
    fault = str(error)
print({_MARK!r} + fault)
"""


def check_wandb_account(config: RunConfig) -> None:
    """Refuse a new run that asks to record online without a key, or with one that cannot be valid.

    A run that continues is not refused: its client warns and records offline. Whether the service knows the key is only
    found out by that client, when it connects. ConfigError: no key, or one of the wrong form.
    """
    if config.metrics.wandb != "online" or shown_settings().get("WANDB_MODE", "online") != "online":
        return
    directory = config.run.directory
    is_new = furthest_step(directory) == 0 and not list_checkpoints(directory / "checkpoints")
    if is_new and (fault := key_fault()):
        raise ConfigError(
            f"metrics.wandb = 'online' is invalid: {fault}. Run `wandb login`, set WANDB_API_KEY, or use "
            f"--metrics.wandb offline and upload later with `wandb sync`"
        )


def key_fault() -> str:
    """What is wrong with the key that W&B's client finds (in variables, settings or netrc); "" if nothing.

    The client runs in a separate process: in this one, its import would make its temporary folders elsewhere than
    `WandbRun` does.
    """
    with suppress(OSError, subprocess.SubprocessError):  # the run's client will report it, and record offline
        done = subprocess.run(
            [sys.executable, "-P", "-c", _FAULT],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LIMIT_S,
            check=True,
        )
        return one_line(done.stdout.partition(_MARK)[2].strip()).rstrip(".")
    return ""
