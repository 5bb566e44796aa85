"""The stage that scores documents for `[moderation]` of a data recipe, with a classifier run."""

from functools import lru_cache
from pathlib import Path

import torch

from data_prep.execution.tasks import Stage, TaskResult
from data_prep.filters.moderation import STEP, ModerationConfig, ModerationRule, ModerationStage, filter_shard
from gpt.errors import ConfigError, did_you_mean
from launch.moderation.classifier import OpenedClassifier
from launch.moderation.decisions import CALIBRATION, FOLDER
from launch.moderation.open_run import classifier_objective, load_classifier
from launch.runs.open_model import config_of_newest
from launch.runs.saved_run import find_checkpoint
from parallel.checkpoint.manifest import MANIFEST


def moderation_stage(config: ModerationConfig) -> ModerationStage | None:
    """The stage for a recipe, with the newest whole checkpoint of its run; None if the recipe names none.

    ConfigError: there is no whole checkpoint, the run is no classifier, or `drop` has a category that it lacks.
    """
    if config.run is None:
        return None
    categories = classifier_objective(config_of_newest(config.run, None), config.run).taxonomy.ids
    for name in config.drop:
        if name not in categories:
            meant = did_you_mean(name, categories) or f"use one of {', '.join(categories)}"
            raise ConfigError(f"moderation.drop: {name} is no category of {config.run}; {meant}")
    directory, checkpoint, _ = find_checkpoint(config.run, None)
    calibration = directory / FOLDER / CALIBRATION
    files = (checkpoint.path / MANIFEST, *([calibration] if calibration.is_file() else []))
    return ModerationStage(MODERATE, tuple(path.resolve() for path in files))


def moderate_shard(config: ModerationRule, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: (shard, manifest of a checkpoint, perhaps a calibration) to (shard, trace)."""
    classifier = _opened(inputs[1].parent, config.window, config.device)
    return filter_shard(config, inputs, outputs, categories=classifier.categories, score=classifier.scores)


@lru_cache(1)
def _opened(checkpoint: Path, window: int | None, device: str) -> OpenedClassifier:
    """The classifier of this worker, which does many tasks. Workers share the cores, so each uses one thread."""
    torch.set_num_threads(1)
    return load_classifier(checkpoint, window=window, device=device, packs=True)


MODERATE = Stage(STEP, moderate_shard)
