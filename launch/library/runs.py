"""Prepare a corpus and train a model from Python, as the commands do."""

import dataclasses
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt.files.json_text import decode_json
from gpt.files.regular import read_text
from gpt.training.config import ObjectiveConfig
from launch.commands.data.prepare import import_packages
from launch.config.lengths import without_replaced
from launch.config.prepare_config import moderation_of, prepare_config
from launch.config.recipe import find_recipe, read_toml
from launch.config.run_config import build_run_config
from launch.processes.environment import ClusterEnvironment
from launch.processes.rank_process import StopSignals
from launch.processes.terminal import table_console

if TYPE_CHECKING:
    from data_prep.pipeline import PreparedCorpus

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class TrainedRun:
    """How a call of `train` ended: at which step, after how many tokens, and why (such as "total_tokens")."""

    directory: Path
    step: int
    tokens_seen: int
    ended: str
    validation_loss: dict[str, float]  # nats a token, by the name of the corpus; empty without an evaluation


def train(
    recipe: str | Path, settings: Settings | None = None, *, objective: ObjectiveConfig | None = None
) -> TrainedRun:
    """Train as `triaxial train RECIPE` does, in this process. Return how the run ended.

    `settings`: keys of the recipe with new values, such as {"train.total_tokens": 10**6}. A run directory with a
    checkpoint is continued. `objective`: what to learn instead of the recipe's [objective]: a frozen dataclass with
    `kind` and a method build(z_loss=...) that returns an Objective, with samples, model ends and loss of your own.

    Under torchrun this process is one rank. Ctrl-C, or a notebook's interrupt, saves after the step and ends; a second
    one raises KeyboardInterrupt. ConfigError: a mistake in the recipe or its data.
    """
    from launch.training.train_rank import run_rank
    from launch.training.wandb_account import check_wandb_account

    given = without_replaced(read_toml(find_recipe(str(recipe))), _with({}, settings))
    config = build_run_config(_with(given, settings))
    if objective is not None:
        config = dataclasses.replace(config, objective=objective)
    environment = ClusterEnvironment.from_environment()
    if environment.world_size == 1:
        check_wandb_account(config)
    with _interruptible() as stop:
        run_rank(config, environment, resume=None, stop=stop)
    summary = decode_json(read_text(config.run.directory / "train_summary.json"))
    return TrainedRun(
        directory=config.run.directory,
        step=summary["step"],
        tokens_seen=summary["tokens_seen"],
        ended=summary["ended"],
        validation_loss=summary["validation_loss_nats"],
    )


def prepare(recipe: str | Path, settings: Settings | None = None, *, workers: int | None = None) -> "PreparedCorpus":
    """Make a corpus as `triaxial prepare RECIPE` does. Return its folder, and how many documents each stage dropped.

    `settings`: as for `train`. `workers`: processes, by default one for each core. Finished stages are not repeated.
    Call it under `if __name__ == "__main__":` in a script, since it starts processes. ConfigError: as for `train`, or
    no document is left.
    """
    import_packages()
    from data_prep.execution.progress import ProgressBars
    from data_prep.pipeline import prepare as run_stages

    config = prepare_config(_with(read_toml(find_recipe(str(recipe))), settings))
    progress = ProgressBars(table_console(), every_s=30.0)
    return run_stages(config, n_workers=workers, progress=progress, moderation=moderation_of(config))


def _with(table: dict[str, Any], settings: Settings | None) -> dict[str, Any]:
    """The table with values of dotted keys replaced."""
    for dotted, value in (settings or {}).items():
        *sections, key = dotted.split(".")
        inner = table
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[key] = str(value) if isinstance(value, Path) else value
    return table


@contextmanager
def _interruptible() -> Iterator[StopSignals]:
    """A request to stop that Ctrl-C makes inside the block, in the main thread."""
    stop = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(*_: object) -> None:
        if stop.interrupted:
            raise KeyboardInterrupt
        stop.interrupt()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
