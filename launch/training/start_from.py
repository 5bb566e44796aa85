"""Whose weights a new run begins with, where its recipe says so (run.start_from); loads none and changes nothing."""

import dataclasses
import shutil
from pathlib import Path

from gpt.errors import ConfigError
from gpt.tokenizer.tokenizers import tokenizer_files
from launch.config.run_config import RunConfig, changed_keys
from launch.runs.imported_run import HUGGING_FACE
from launch.runs.saved_run import find_checkpoint_folder
from parallel.checkpoint.find import find_latest
from parallel.checkpoint.folders import list_checkpoints
from parallel.checkpoint.handle import Checkpoint, read_checkpoint_header, verify_checkpoint
from parallel.errors import CheckpointError

# What may differ between the two recipes' models: it decides nothing about weights that are already there.
_FREE = ("init_std",)


def check_start_from(config: RunConfig) -> None:
    """Tell of a mistake before any process talks to another: what can be seen without verifying a checkpoint."""
    if config.run.start_from is None:
        return
    directory, path = find_checkpoint_folder(config.run.start_from)
    if path is None:
        found = list_checkpoints(directory)
        if not found:
            raise ConfigError(f"run.start_from = '{config.run.start_from}' holds no checkpoint in {directory}")
        path = found[0]
    try:
        state = read_checkpoint_header(path).state
    except CheckpointError:
        return  # the one that is taken is verified, and this one passed over, in `starting_weights`
    _check_same_model(path, state, config)


def starting_weights(config: RunConfig) -> Checkpoint | None:
    """The checkpoint, verified; None where the recipe names none. Collective over all ranks."""
    if config.run.start_from is None:
        return None
    directory, path = find_checkpoint_folder(config.run.start_from)
    if path is None:
        checkpoint, skipped = find_latest(directory)
        if checkpoint is None:
            reasons = "".join(f"; {bad}: {reason}" for bad, reason in skipped)
            raise ConfigError(
                f"run.start_from = '{config.run.start_from}': {directory} holds no whole checkpoint{reasons}"
            )
    else:
        checkpoint = verify_checkpoint(path)
    _check_same_model(checkpoint.path, checkpoint.state, config)
    return checkpoint


def bring_companions(config: RunConfig) -> None:
    """Copy what came with an imported model that this run began with, such as its chat template, so that it goes back
    with an export; not when the tokenizer is another. One process."""
    if config.run.start_from is None or not config.run.start_from.is_dir():
        return
    source = find_checkpoint_folder(config.run.start_from)[0].parent
    copies, original = config.run.directory / HUGGING_FACE, source / HUGGING_FACE
    if copies.exists() or not original.is_dir():
        return
    for file in tokenizer_files(Path(config.data.tokenizer)):
        same = source / "tokenizer" / file.name
        if not same.is_file() or same.read_bytes() != file.read_bytes():
            return
    shutil.copytree(original, copies)


def _check_same_model(path: Path, state: dict[str, object], config: RunConfig) -> None:
    saved = state.get("config")
    model = saved.get("model") if isinstance(saved, dict) else None
    if not isinstance(model, dict):
        raise ConfigError(f"run.start_from: {path} does not say of which model it is")
    before, after = (
        {key: value for key, value in table.items() if key not in _FREE}
        for table in (model, dataclasses.asdict(config.model))
    )
    changes = changed_keys(before, after, prefix="model.")
    if changes:
        raise ConfigError(
            f"run.start_from: {path} is of another model than the recipe's ({'; '.join(changes)}); take its [model] "
            "section (`triaxial convert` leaves it as model.toml)"
        )
