"""Whether Weights & Biases has a key, before a run that asks to record online starts. Uses no network."""

import io
from contextlib import redirect_stderr

from gpt.errors import ConfigError, one_line
from launch.config.run_config import RunConfig
from launch.processes.environment import shown_settings
from launch.runs.history import furthest_step


def check_wandb_account(config: RunConfig) -> None:
    """Refuse a new run that asks to record online without a key, or with one that cannot be valid.

    A run that continues is not refused: its client warns and records offline. Whether the service knows the key is only
    found out by that client, when it connects. ConfigError: no key, or one of the wrong form.
    """
    if config.metrics.wandb != "online" or shown_settings().get("WANDB_MODE", "online") != "online":
        return
    fault = key_fault()
    if fault and furthest_step(config.run.directory) == 0:
        raise ConfigError(
            f"metrics.wandb = 'online' is invalid: {fault}. Run `wandb login`, set WANDB_API_KEY, or use "
            f"--metrics.wandb offline and upload later with `wandb sync`"
        )


def key_fault() -> str:
    """What is wrong with the key that W&B's client finds (in variables, settings or netrc); "" if nothing."""
    import wandb  # takes a second

    try:
        with redirect_stderr(io.StringIO()):  # the client says there where it found the key
            found = wandb.login(prompt=False, verify=False)
    except wandb.errors.AuthenticationError as error:
        return one_line(str(error)).rstrip(".")
    except Exception:  # it can raise any error; the run's client will report it, and record offline
        return ""
    return "" if found else "Weights & Biases has no API key here"
