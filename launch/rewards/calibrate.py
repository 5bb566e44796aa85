"""Publish a reward run's checkpoint again with a bias that makes the mean reward of demonstrations 0.

InstructGPT does so before RL (arXiv 2203.02155, section 3.5). The loss of a reward model does not see the bias, so
training may continue from the new checkpoint.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt.errors import ConfigError
from gpt.post_training.sequence_scores import Floats
from gpt.telemetry.event_log import append_event
from launch.conversion.changed_checkpoint import place_of, publish_changed
from parallel.checkpoint.handle import Checkpoint

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

    As `publish_changed`. The shift is in its state and in events.jsonl.
    """
    final = place_of(run_directory, checkpoint)
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

    def shifted(name: str, tensor: Tensor) -> Tensor:
        return tensor.to(torch.float64) - found.mean if name == BIAS else tensor

    publish_changed(run_directory, checkpoint, shifted, state={CALIBRATION: facts}, is_main=is_main)
    if is_main:
        text = f"calibrated {final.name}: {found.n:,} demonstrations had mean reward {found.mean:.6f}, now 0"
        append_event(run_directory / "events.jsonl", "calibrated", step=checkpoint.step, text=text, fields=facts)
    return final
