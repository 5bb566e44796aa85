"""Publish a run's checkpoint again in its own place, with a few tensors changed."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor

from gpt.errors import ConfigError
from gpt.files.safetensors import TensorSpec
from launch.processes.run_lock import lock
from parallel.agreement import run_on_all_ranks
from parallel.checkpoint.folders import step_name
from parallel.checkpoint.handle import Checkpoint, verify_checkpoint
from parallel.checkpoint.load import read_tensors
from parallel.checkpoint.stream import write_stream


def publish_changed(
    run_directory: Path,
    checkpoint: Checkpoint,
    change: Callable[[str, Tensor], Tensor],
    *,
    state: dict[str, Any],
    is_main: bool,
) -> Path:
    """Publish the checkpoint with `change(name, tensor)` of each tensor, in its dtype, and with `state` added to its
    state. Every rank must call it.

    The main rank writes it; the folder gets its name when it is whole, and until then the old one has it. Then all
    ranks verify it. Memory: near one tensor. ConfigError on all ranks: the run is in use, or the disk is full.
    """
    final = place_of(run_directory, checkpoint)

    def write() -> None:
        specs = {name: TensorSpec(stored.shape, stored.dtype) for name, stored in checkpoint.index.items()}
        write_stream(final, _changed(checkpoint, specs, change), expected=specs, state={**checkpoint.state, **state})

    with ExitStack() as held:
        run_on_all_ranks(lambda: lock(held, run_directory) if is_main else None, None, path=final)
        run_on_all_ranks(lambda: write() if is_main else None, None, path=final)
        verify_checkpoint(final)
    return final


def place_of(run_directory: Path, checkpoint: Checkpoint) -> Path:
    """The folder of a checkpoint of this run. ConfigError if the checkpoint is elsewhere."""
    final = run_directory / "checkpoints" / step_name(checkpoint.step)
    if checkpoint.path.resolve() != final.resolve():
        raise ConfigError(f"{checkpoint.path} is not in the folder of checkpoints of {run_directory}. Give the run")
    return final


def _changed(
    checkpoint: Checkpoint, specs: dict[str, TensorSpec], change: Callable[[str, Tensor], Tensor]
) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in read_tensors(checkpoint, specs):
        yield name, change(name, tensor)
