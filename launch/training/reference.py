"""The frozen reference model of an objective that learns relative to the starting weights, such as DPO.

A run keeps a copy of the reference in its directory, so that it resumes bit-exactly after the run that it started from
has moved on or is gone.
"""

from dataclasses import replace
from pathlib import Path

import torch

from gpt.errors import ConfigError
from gpt.training.config import Retention
from gpt.training.engine import Engine
from gpt.training.objective import Objective
from launch.training.resume import RunStart
from parallel.checkpoint.find import find_latest
from parallel.engines.choose import build_engine
from parallel.engines.settings import EngineSettings
from parallel.layout.mesh import Mesh

REFERENCE = "reference"  # the folder in the run's directory


def build_reference(
    settings: EngineSettings,
    *,
    objective: Objective,
    device: torch.device,
    mesh: Mesh,
    start: RunStart,
    folder: Path | None,
) -> Engine:
    """The engine of the reference, which trains nothing: with the weights from which the run starts or has started.

    A new run saves them to `folder`, unless it is None; a resumed one reads them from there. Collective over all ranks.
    ConfigError: the copy is gone.
    """
    reference = build_engine(
        replace(settings, optimizer=None, adapter=None, residual_dropout=0.0),
        objective=objective,
        device=device,
        init_weights=start.checkpoint is None and start.weights is None,
        mesh=mesh,
    )
    store = reference.checkpoints.shared
    if start.checkpoint is not None:
        assert folder is not None, "only a run with a directory can resume"
        found, skipped = find_latest(folder)
        if found is None:
            reasons = "".join(f"; {bad}: {reason}" for bad, reason in skipped)
            raise ConfigError(
                f"{folder} has no whole copy of the reference model, without which the run cannot resume{reasons}. "
                f"Restore it, or start a new run: another --run.directory"
            )
        store.load_weights(found)
        return reference
    if start.weights is not None:
        store.load_weights(start.weights)
    if folder is not None:
        source = "the seed" if start.weights is None else str(start.weights.path)
        store.save(folder, step=0, state={"weights_of": source}, keep=Retention(1))
    return reference
