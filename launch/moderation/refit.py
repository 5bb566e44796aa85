"""Fit the linear heads of a classifier run again to labelled texts, its trunk as it is, and publish them in the run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt.errors import ConfigError
from gpt.moderation.frozen.leave_one_out import choose_l2
from gpt.moderation.frozen.linear_heads import FittedHeads, check_l2, fit_heads
from gpt.moderation.labels import LabelledText, label_matrix
from gpt.telemetry.event_log import append_event
from launch.conversion.changed_checkpoint import place_of, publish_changed
from launch.moderation.classifier import OpenedClassifier
from launch.moderation.open_run import classifier_objective

WEIGHT, BIAS = "model.head.classes.weight", "model.head.classes.bias"
FITTED = "fitted_heads"  # key in a checkpoint's state


def check_linear(opened: OpenedClassifier) -> None:
    """ConfigError unless the run has linear heads, and its newest checkpoint is in its own folder."""
    config = classifier_objective(opened.run.checkpoint.state["config"], opened.run.run_directory).config  # type: ignore[arg-type]
    if config.head != "linear":
        raise ConfigError(
            f"objective.head = '{config.head}' of {opened.run.run_directory} is invalid here: only linear heads are "
            f"fitted to features. Train a run with objective.head = 'linear'"
        )
    place_of(opened.run.run_directory, opened.run.checkpoint)


def fit_to_texts(
    opened: OpenedClassifier, texts: Sequence[LabelledText], *, l2: float | None
) -> tuple[FittedHeads, dict[str, float]]:
    """Fit a head for each category to the features of texts, standardised; also return the penalty of each.

    `l2` None: the penalty of each category is chosen by leave-one-out. ConfigError: as `fit_heads`.
    """
    if l2 is not None:
        check_l2(l2)  # features take minutes
    features: NDArray[np.float32] = opened.features([one.text for one in texts])
    labels, ids = label_matrix(texts, opened.taxonomy), opened.taxonomy.ids
    penalties = choose_l2(features, labels, ids) if l2 is None else dict.fromkeys(ids, l2)
    return fit_heads(features, labels, ids, l2=penalties, standardise=True), penalties


def publish_heads(opened: OpenedClassifier, fitted: FittedHeads, *, l2: Mapping[str, float], n_texts: int) -> Path:
    """Publish the run's checkpoint with these heads, and record it as an event. ConfigError: as `publish_changed`."""
    new = {WEIGHT: torch.from_numpy(fitted.weight), BIAS: torch.from_numpy(fitted.bias)}
    facts: dict[str, Any] = {
        "texts": n_texts,
        "l2": dict(l2),
        "known": dict(zip(opened.categories, fitted.n_known, strict=True)),
    }

    def change(name: str, tensor: Tensor) -> Tensor:
        return new.get(name, tensor)

    path = publish_changed(opened.run.run_directory, opened.run.checkpoint, change, state={FITTED: facts}, is_main=True)
    text = f"fitted the heads of {path.name} to {n_texts:,} labelled texts"
    events = opened.run.run_directory / "events.jsonl"
    append_event(events, "heads_fitted", step=opened.run.checkpoint.step, text=text, fields=facts)
    return path
