"""Find the checkpoint whose weights a new run takes (run.start_from). The engine loads them."""

import dataclasses
from pathlib import Path

import numpy as np

from gpt.errors import ConfigError
from gpt.files.regular import copy_folder, read_bytes
from gpt.tokenizer.tokenizers import tokenizer_files
from launch.config.run_arguments import find_checkpoint_folder
from launch.config.run_config import RunConfig, changed_keys
from launch.runs.imported_run import HUGGING_FACE
from parallel.checkpoint.find import find_latest
from parallel.checkpoint.folders import list_checkpoints, list_unusable
from parallel.checkpoint.handle import Checkpoint, read_checkpoint_header, verify_checkpoint
from parallel.errors import CheckpointError

# Settings of the model that may differ between the two recipes: they only affect the initialisation.
_MAY_DIFFER = ("init_std",)


def check_start_from(config: RunConfig) -> None:
    """Raise the errors that need no verified checkpoint, before any process communicates."""
    if config.run.start_from is None:
        return
    directory, path = find_checkpoint_folder(config.run.start_from)
    if path is None:
        found = list_checkpoints(directory)
        if not found and list_unusable(directory):
            return  # `starting_weights` says what they are
        if not found:
            raise ConfigError(f"run.start_from = '{config.run.start_from}' has no checkpoint in {directory}")
        path = found[0]
    try:
        state = read_checkpoint_header(path).state
    except CheckpointError:
        return  # `starting_weights` verifies, and falls back to an older one
    _check_same_model(path, state, config)


def starting_weights(config: RunConfig) -> Checkpoint | None:
    """The verified checkpoint of run.start_from, or None without that setting. Collective over all ranks."""
    if config.run.start_from is None:
        return None
    directory, path = find_checkpoint_folder(config.run.start_from)
    if path is None:
        checkpoint, skipped = find_latest(directory)
        if checkpoint is None:
            reasons = "".join(f"; {bad}: {reason}" for bad, reason in skipped)
            raise ConfigError(
                f"run.start_from = '{config.run.start_from}': {directory} contains no whole checkpoint{reasons}"
            )
    else:
        checkpoint = verify_checkpoint(path)
    _check_same_model(checkpoint.path, checkpoint.state, config)
    return checkpoint


def copy_companions(config: RunConfig) -> None:
    """Copy the files of an imported model besides weights and tokenizer, such as its chat template, for a later export.

    Only if this run started from that model with the same tokenizer. One process calls it.
    """
    if config.run.start_from is None or not config.run.start_from.is_dir():
        return
    source = find_checkpoint_folder(config.run.start_from)[0].parent
    copies, original = config.run.directory / HUGGING_FACE, source / HUGGING_FACE
    if copies.exists() or not original.is_dir():
        return
    for file in tokenizer_files(Path(config.data.tokenizer)):
        same = source / "tokenizer" / file.name
        if not same.is_file() or read_bytes(same) != read_bytes(file):
            return
    copy_folder(original, copies)


def _check_same_model(path: Path, state: dict[str, object], config: RunConfig) -> None:
    saved = state.get("config")
    model = saved.get("model") if isinstance(saved, dict) else None
    if not isinstance(model, dict):
        raise ConfigError(f"run.start_from: {path} does not record its model configuration")
    before, after = (
        {key: _in_fp32(value) for key, value in table.items() if key not in _MAY_DIFFER}
        for table in (model, dataclasses.asdict(config.model))
    )
    if _layers_left(model, config) is not None:
        before["n_layers"] = after["n_layers"]
    changes = changed_keys(before, after, prefix="model.")
    if changes:
        raise ConfigError(
            f"run.start_from: {path} is of another model than the recipe's ({'; '.join(changes)}). Use its [model] "
            "section, which `triaxial convert` writes as model.toml."
        )


def cut_layers(checkpoint: Checkpoint, config: RunConfig) -> str | None:
    """The note that a run takes only the first layers of the model that it starts from; None if it takes all."""
    saved = checkpoint.state.get("config")
    model = saved.get("model") if isinstance(saved, dict) else None
    left = _layers_left(model, config) if isinstance(model, dict) else None
    if left is None:
        return None
    return f"the first {config.model.n_layers} layers of {checkpoint.path}; its last {left} are left out"


def _layers_left(model: dict[str, object], config: RunConfig) -> int | None:
    """How many of the saved model's last layers a recipe with fewer leaves out; None if it does not have fewer."""
    layers = model.get("n_layers")
    return layers - config.model.n_layers if isinstance(layers, int) and layers > config.model.n_layers else None


def _in_fp32(value: object) -> object:
    """A setting as fp32 holds it: an import may have 9.9999997e-06 for 1e-5, which computes the same."""
    return float(np.float32(value)) if isinstance(value, float) else value
