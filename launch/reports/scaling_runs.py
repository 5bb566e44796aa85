"""Read a family of runs as curves of loss against compute, and check that they can be compared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt.errors import ConfigError
from gpt.evaluation.scaling_law import Curve
from gpt.telemetry.screen import human_count
from gpt.tokenizer.tokenizers import load_tokenizer
from launch.config.run_config import RunConfig, from_dict
from launch.processes.terminal import printable
from launch.runs.history import RunHistory, read_history
from launch.runs.saved_run import tokenizer_file


@dataclass(frozen=True)
class FamilyRun:
    """One run with its configuration and its losses on the corpus that the family is compared on."""

    directory: Path
    config: RunConfig
    curve: Curve


@dataclass(frozen=True)
class Family:
    """Runs in order of size. `notes`: differences that make them less comparable."""

    runs: list[FamilyRun]
    corpus: str
    notes: list[str]

    @property
    def curves(self) -> list[Curve]:
        return [run.curve for run in self.runs]


def read_family(directories: Sequence[Path], *, corpus: str | None = None) -> Family:
    """Read the runs and their losses on `corpus`, which may be None if they have one validation corpus in common.

    ConfigError if there are fewer than two runs, a run has no validation loss, the runs have no validation corpus in
    common or several and `corpus` is None, or their tokenizers differ.
    """
    directories = list(dict.fromkeys(directories))
    if len(directories) < 2:
        raise ConfigError(f"--scaling compares runs of several sizes, but got {len(directories)}. Name two or more")
    histories = [read_history(directory) for directory in directories]
    configs = [_config(history) for history in histories]
    corpus = _corpus(histories, corpus)
    runs = [
        FamilyRun(history.directory, config, _curve(history, config, corpus))
        for history, config in zip(histories, configs, strict=True)
    ]
    runs.sort(key=lambda run: run.curve.n_parameters)
    notes = [f"{history.directory}: {problem}" for history in histories for problem in history.problems]
    notes += [*_check_tokenizers(runs), *_differences(runs), *_unfinished(runs)]
    return Family(runs, printable(corpus), [printable(note) for note in notes])


def _config(history: RunHistory) -> RunConfig:
    if not history.config:
        raise ConfigError(f"{history.directory}: no readable config.json, so the size of the model is unknown")
    try:
        return from_dict(history.config)
    except ConfigError as error:
        raise ConfigError(f"{history.directory / 'config.json'}: {error}") from None


def _corpora(history: RunHistory) -> list[str]:
    names = [name for name in history.metrics if name.startswith("validation/") and name.endswith("/loss")]
    return [name.removeprefix("validation/").removesuffix("/loss") for name in names]


def _corpus(histories: Sequence[RunHistory], wanted: str | None) -> str:
    """The validation corpus on which all runs have a loss."""
    for history in histories:
        found = _corpora(history)
        if not found:
            raise ConfigError(
                f"{history.directory}: no validation loss. It needs data.validation and train.evaluate_every_tokens"
            )
        if wanted is not None and wanted not in found:
            raise ConfigError(
                f"--corpus {wanted}: {history.directory} has no such validation corpus. It has {', '.join(found)}"
            )
    if wanted is not None:
        return wanted
    common = [name for name in _corpora(histories[0]) if all(name in _corpora(history) for history in histories)]
    if not common:
        own = "; ".join(f"{history.directory} has {', '.join(_corpora(history))}" for history in histories)
        raise ConfigError(f"the runs have no validation corpus in common: {own}")
    if len(common) > 1:
        raise ConfigError(
            f"the runs have {len(common)} validation corpora. Name one with --corpus: {', '.join(common)}"
        )
    return common[0]


def _curve(history: RunHistory, config: RunConfig, corpus: str) -> Curve:
    series = history.metrics[f"validation/{corpus}/loss"]
    ramp = config.batch.ramp
    tokens = np.array([ramp.tokens_seen(int(step)) for step in series.steps], dtype=np.float64)
    seen = (tokens > 0) & (series.values > 0)
    if not seen.any():
        raise ConfigError(f"{history.directory}: no validation loss after its first step. Train it longer")
    name = printable(history.directory.resolve().name)
    return Curve(name, config.model.non_embedding_parameters, tokens[seen], series.values[seen])


def _check_tokenizers(runs: Sequence[FamilyRun]) -> list[str]:
    """Notes on missing tokenizers. ConfigError if two differ: then losses per token cannot be compared."""
    known: dict[str, Path] = {}
    notes = []
    for run in runs:
        try:
            fingerprint = load_tokenizer(tokenizer_file(run.directory, run.config.data)).fingerprint
        except ConfigError:
            notes.append(f"{run.directory}: its tokenizer is missing; assumed to be the same as the others'")
            continue
        known.setdefault(fingerprint, run.directory)
    if len(known) > 1:
        (one, first), (two, second) = list(known.items())[:2]
        raise ConfigError(
            f"{first} and {second} have different tokenizers (fingerprints {one[:16]} and {two[:16]}), so their losses "
            "per token cannot be compared. Train the family with one tokenizer"
        )
    return notes


def _differences(runs: Sequence[FamilyRun]) -> list[str]:
    """One note for each setting, apart from the size, in which the runs differ."""
    settings: dict[str, Callable[[RunConfig], object]] = {
        "data.validation": lambda config: [corpus.path for corpus in config.data.validation],
        "train.validation_tokens": lambda config: config.train.validation_tokens,
        "data.seq_len": lambda config: config.data.seq_len,
        "data.train": lambda config: [(corpus.path, corpus.weight) for corpus in config.data.train],
    }
    notes = []
    for key, value in settings.items():
        first = next((run for run in runs[1:] if value(run.config) != value(runs[0].config)), None)
        if first is not None:
            notes.append(
                f"{key} differs: {value(runs[0].config)} in {runs[0].directory}, {value(first.config)} in "
                f"{first.directory}. The losses are less comparable"
            )
    return notes


def _unfinished(runs: Sequence[FamilyRun]) -> list[str]:
    return [
        f"{run.directory} is at {human_count(run.curve.tokens[-1])} of {human_count(run.config.train.total_tokens)} "
        "tokens"
        for run in runs
        if run.curve.tokens[-1] < run.config.train.total_tokens
    ]
