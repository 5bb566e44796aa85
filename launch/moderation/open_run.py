"""Open a classifier run: on any layout for a command, or in this process."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt.data.config import DataConfig
from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from gpt.moderation.classifier import Classifier
from gpt.tokenizer.tokenizers import load_tokenizer
from gpt.training.objective import Objective
from launch.config.run_arguments import BATCH_TOKENS, GPU_BATCH_TOKENS
from launch.moderation.classifier import OpenedClassifier, version_of
from launch.moderation.decisions import Decisions, read_decisions
from launch.moderation.features import TextFeatures
from launch.processes.environment import ClusterEnvironment
from launch.runs.open_engine import OpenedEngine, load_local_scorer, opened_engine, packed_for_scoring
from launch.runs.open_model import config_of_newest, inference_layout
from launch.runs.saved_run import (
    DTYPES,
    device_of,
    find_checkpoint,
    model_section,
    objective_section,
    section,
    tokenizer_file,
)


def load_asked_classifier(args: argparse.Namespace, *, features: bool = False) -> OpenedClassifier:
    """`load_classifier` with the arguments of a command, see `add_classifier_arguments`."""
    return load_classifier(
        args.run,
        step=args.step,
        device=args.device,
        dtype=args.dtype,
        window=args.window,
        batch_tokens=args.batch_tokens,
        raw=args.raw,
        features=features,
        packs=True,
    )


@contextmanager
def opened_classifier(args: argparse.Namespace, *, features: bool = False) -> Iterator[OpenedClassifier]:
    """Open the classifier run of a command's arguments. Collective: under a launcher every rank must enter the context.

    `features`: for `OpenedClassifier.features`; such a run gives no scores. ConfigError: as for `opened_engine`, for a
    run that is no classifier, and for damaged files of its calibration.
    """

    def objective_of(config: dict[str, Any], run: Path) -> Objective:
        found = classifier_objective(config, run)
        return TextFeatures(found, model_section(config).d_model) if features else found

    environment = ClusterEnvironment.from_environment()
    if environment.world_size == 1:
        inference_layout(args, 1, config_of_newest(args.run, args.step))  # raises for a layout of more processes
        yield load_asked_classifier(args, features=features)
        return
    with opened_engine(args, objective_of) as opened:
        yield _of_run(opened, args.window, args.batch_tokens, args.device, raw=args.raw)


def load_classifier(
    run: str | Path,
    *,
    step: int | None = None,
    device: str = "auto",
    dtype: str = "float32",
    window: int | None = None,
    batch_tokens: int | None = None,
    raw: bool = False,
    features: bool = False,
    packs: bool = False,
) -> OpenedClassifier:
    """Open a classifier run in this process alone. ConfigError: as for `opened_classifier`.

    `packs`: on a CPU, lay out the weights for speed; the module's weights can then not be read.
    """
    directory, checkpoint, notes = find_checkpoint(Path(run), step)
    config = checkpoint.state.get("config")
    if not isinstance(config, dict):
        raise ConfigError(f"{checkpoint.path}: its state has no configuration, so `triaxial train` did not save it")
    classifier, model = classifier_objective(config, Path(run)), model_section(config)
    objective: Objective = TextFeatures(classifier, model.d_model) if features else classifier
    data_config = section(DataConfig, config, "data")
    file = tokenizer_file(directory, data_config)
    scorer = load_local_scorer(checkpoint, model, objective, device=device_of(device), dtype=DTYPES[dtype])
    opened = OpenedEngine(
        engine=packed_for_scoring(scorer) if packs else scorer,
        objective=objective,
        run_directory=directory,
        checkpoint=checkpoint,
        model=model,
        data_config=data_config,
        tokenizer=load_tokenizer(file),
        tokenizer_file=file,
        notes=tuple(notes),
    )
    return _of_run(opened, window, batch_tokens, device, raw=raw)


def _of_run(
    opened: OpenedEngine, window: int | None, batch_tokens: int | None, device: str, *, raw: bool
) -> OpenedClassifier:
    """The classifier of an opened run. ConfigError: files of its calibration are damaged, or a number is too small."""
    objective = opened.objective
    classifier = objective.classifier if isinstance(objective, TextFeatures) else objective
    assert isinstance(classifier, Classifier)
    decisions = _decisions(opened.run_directory, classifier, raw=raw)
    return OpenedClassifier(
        run=opened,
        taxonomy=classifier.taxonomy,
        version=version_of(opened.checkpoint, classifier.taxonomy, decisions),
        window=_window(window, opened.model, opened.data_config),
        batch_tokens=_batch_tokens(batch_tokens, device),
        decisions=decisions,
        gives_features=isinstance(objective, TextFeatures),
    )


def classifier_objective(config: dict[str, Any], run: Path) -> Classifier:
    """The objective of a run's configuration. ConfigError if the run is no classifier."""
    found = objective_section(config).build(z_loss=0.0)
    if isinstance(found, Classifier):
        return found
    kind = config.get("objective", {}).get("kind", "next_token")
    raise ConfigError(
        f"{run} is no classifier run (objective.kind = '{kind}'). Train one with objective.kind = 'classifier'"
    )


def _decisions(run: Path, classifier: Classifier, *, raw: bool) -> Decisions:
    taxonomy = classifier.taxonomy
    found = read_decisions(run, taxonomy.ids, parents=taxonomy.parents if classifier.config.parents else ())
    return found.without_calibration() if raw else found


def _batch_tokens(given: int | None, device: str) -> int:
    if given is None:
        return BATCH_TOKENS if device_of(device).type == "cpu" else GPU_BATCH_TOKENS
    if given < 1:
        raise ConfigError(f"--batch-tokens {given} is invalid: must be at least 1")
    return given


def _window(given: int | None, model: ModelConfig, data_config: DataConfig) -> int:
    if given is None:
        return min(model.n_ctx, data_config.seq_len)
    if not 2 <= given <= model.n_ctx:
        raise ConfigError(f"--window {given} is invalid: must be from 2 to the model's context, {model.n_ctx} tokens")
    return given
