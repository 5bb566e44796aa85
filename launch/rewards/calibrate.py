"""Publish a reward run's checkpoint again with a bias that makes the mean reward of demonstrations 0.

InstructGPT does so before RL (arXiv 2203.02155, section 3.5). The loss of a reward model does not see the bias, so
training may continue from the new checkpoint.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt.errors import ConfigError
from gpt.files.safetensors import TensorSpec
from gpt.post_training.sequence_scores import Floats
from gpt.telemetry.event_log import append_event
from launch.processes.run_lock import lock
from parallel.agreement import run_on_all_ranks
from parallel.checkpoint.folders import step_name
from parallel.checkpoint.handle import Checkpoint, verify_checkpoint
from parallel.checkpoint.load import read_tensors
from parallel.checkpoint.stream import write_stream

BIAS = "model.head.value.bias"
CALIBRATION = "calibration"  # key in a checkpoint's state


@dataclass(frozen=True)
class RewardShift:
    """The mean and standard deviation of the rewards of n demonstrations before the shift, which is minus the mean."""

    mean: float
    std: float
    n: int

    @staticmethod
    def of(rewards: Floats, *, where: str) -> "RewardShift":
        """ConfigError: no demonstration has a finite reward."""
        finite = rewards[[math.isfinite(r) for r in rewards]]
        if not len(finite):
            raise ConfigError(f"{where} is invalid: none of its {len(rewards):,} demonstrations has a finite reward")
        return RewardShift(float(finite.mean()), float(finite.std()), len(finite))


def publish_calibrated(
    run_directory: Path, checkpoint: Checkpoint, found: RewardShift, *, source: str, is_main: bool
) -> Path:
    """Publish the checkpoint with the shifted bias in the place of the old one. Every rank must call it.

    The main rank writes it; the folder gets its name when it is whole, and until then the old one has it. Then all
    ranks verify it. The shift is in its state and in events.jsonl. Memory: near one tensor. ConfigError on all ranks:
    the run is in use, or the disk is full.
    """
    final = run_directory / "checkpoints" / step_name(checkpoint.step)
    if checkpoint.path.resolve() != final.resolve():
        raise ConfigError(f"{checkpoint.path} is not in the folder of checkpoints of {run_directory}. Give the run")
    if BIAS not in checkpoint.index:
        raise ConfigError(f"{checkpoint.path} holds no tensor '{BIAS}', so its rewards cannot be shifted")
    before = checkpoint.state.get(CALIBRATION)
    facts: dict[str, Any] = {
        "demonstrations": source,
        "n": found.n,
        "mean_before": found.mean,
        "std": found.std,
        "shift": -found.mean + (before["shift"] if isinstance(before, dict) else 0.0),  # of all calibrations together
    }
    with ExitStack() as held:
        run_on_all_ranks(lambda: lock(held, run_directory) if is_main else None, None, path=final)
        run_on_all_ranks(lambda: _write(final, checkpoint, -found.mean, facts) if is_main else None, None, path=final)
        verify_checkpoint(final)
        if is_main:
            text = f"calibrated {final.name}: {found.n:,} demonstrations had mean reward {found.mean:.6f}, now 0"
            append_event(run_directory / "events.jsonl", "calibrated", step=checkpoint.step, text=text, fields=facts)
    return final


def _write(final: Path, checkpoint: Checkpoint, shift: float, facts: dict[str, Any]) -> None:
    specs = {name: TensorSpec(stored.shape, stored.dtype) for name, stored in checkpoint.index.items()}
    state = {**checkpoint.state, CALIBRATION: facts}
    write_stream(final, _shifted(checkpoint, specs, shift), expected=specs, state=state)


def _shifted(checkpoint: Checkpoint, specs: dict[str, TensorSpec], shift: float) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a checkpoint, the bias in float64 with the shift."""
    for name, tensor in read_tensors(checkpoint, specs):
        yield name, tensor.to(torch.float64) + shift if name == BIAS else tensor
