"""Train GPT-3's quality classifier on positive and negative documents, in stages that resume like a corpus's."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from data_prep.documents.arrays import read_array
from data_prep.documents.counts import Counts
from data_prep.documents.losses import FileLoss, losses_in
from data_prep.execution.files import disk_errors
from data_prep.execution.progress import ProgressBars
from data_prep.execution.shard_runs import ShardRun, Shards
from data_prep.execution.tasks import Stage, Task, TaskResult, plain
from data_prep.execution.workspace import Workspace
from data_prep.extraction.extract import extract_stage, extract_task
from data_prep.extraction.page_text import ExtractConfig
from data_prep.filters.quality_classifier import N_BUCKETS, QualityModel, model_digest, save_model
from data_prep.inputs.config import InputConfig, form_of
from data_prep.inputs.find import find_inputs, local_inputs
from data_prep.quality_training.logistic import Examples, Floats, fit, margins, sigmoid
from data_prep.quality_training.sample import FEATURES, KINDS, SAMPLE, SampleConfig, SampleGatherTask, map_numbers
from data_prep.readers.remote_files import RemoteFile
from gpt.errors import ConfigError
from gpt.files.atomic import open_replacement

SUFFIX = ".safetensors"
_TOLERANCE = 1e-5  # largest entry of the final gradient of the mean loss; scikit-learn stops at 1e-4
_SCORE_BINS = 20


@dataclass(frozen=True)
class FitConfig:
    """Settings of the regression; logistic.py states the objective. `balance = "equal"` gives both classes one weight.

    A share `held_out` of the documents is not trained on; the report evaluates the model on it. `alpha` is that of the
    Pareto rule in the report.
    """

    l2: float = 0.01
    max_iterations: int = 500
    standardize: bool = False
    balance: Literal["equal", "as-is"] = "equal"
    held_out: float = 0.1
    alpha: float = 9.0

    def __post_init__(self) -> None:
        if not 0 <= self.l2 < math.inf:
            raise ConfigError(f"--l2 {self.l2} is invalid: must be at least 0 and finite. The default is 0.01")
        if self.max_iterations < 1:
            raise ConfigError(f"--max-iterations {self.max_iterations} is invalid: must be at least 1")
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"--held-out {self.held_out} is invalid: must be at least 0 and below 1, for example 0.1")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(f"--alpha {self.alpha} is invalid: must be above 0 and finite. GPT-3 uses 9")


@dataclass(frozen=True)
class FitTask:
    """Settings of a fit; `sample` is only quoted in the report."""

    fit: FitConfig
    sample: SampleConfig


@dataclass(frozen=True)
class TrainQualityConfig:
    """Settings of `triaxial prepare train-quality`: files of both classes, the model's file, and how to train it."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    output: Path
    work: Path
    sample: SampleConfig
    fit: FitConfig = field(default_factory=FitConfig)
    extract: ExtractConfig = field(default_factory=ExtractConfig)
    text_field: str = "text"
    text_separator: str = ""

    def __post_init__(self) -> None:
        if self.sample.max_documents < 2:
            raise ConfigError(f"--max-documents {self.sample.max_documents} is invalid: must be at least 2")
        if self.output.suffix != SUFFIX:
            raise ConfigError(
                f"--output {self.output} is invalid: must end in {SUFFIX}. Use {self.output.stem}{SUFFIX}"
            )
        if self.output.is_dir():
            raise ConfigError(f"--output {self.output} is invalid: is a folder. Use a file that ends in {SUFFIX}")


@dataclass(frozen=True)
class TrainedQualityModel:
    """Result of a training: the model's file with its SHA-256, the report, the rows of the table, what was not read."""

    model: Path
    sha256: str
    report: dict[str, Any]
    counts: list[Counts]
    losses: list[FileLoss]
    quarantined: dict[str, list[tuple[Path, int]]]  # stage: files of failed documents, their number


def train_quality(config: TrainQualityConfig, *, n_workers: int, progress: ProgressBars) -> TrainedQualityModel:
    """Run every stage that is not finished yet and publish the model. ConfigError: a mistake, or too few documents."""
    files = {kind: _find(kind, getattr(config, kind)) for kind in KINDS}
    with Workspace(config.work, n_workers=n_workers, progress=progress) as workspace:
        return workspace.run_whole(lambda: _run_stages(workspace, config, files))


def _run_stages(
    workspace: Workspace, config: TrainQualityConfig, files: dict[str, list[Path | RemoteFile]]
) -> TrainedQualityModel:
    run = ShardRun(workspace)
    named = {kind: run.named(local_inputs(files[kind], workspace.folder / "remote"), form_of) for kind in KINDS}
    both = sorted(set(named["positive"]) & set(named["negative"]))
    if both:
        raise ConfigError(f"{named['positive'][both[0]]} is given as --positive and as --negative. Remove one")
    counts: list[Counts] = []
    features = []
    for kind in KINDS:
        before = len(run.counts)
        texts = run.map(extract_stage(config.extract), extract_task(_reading(config), config.extract), named[kind])
        counts += [replace(row, step=f"{row.step}, {kind}") for row in run.counts[before:]]
        features.append(_features(run, config.sample, texts))
    folder = workspace.folder / SAMPLE.name
    sampled = tuple(folder / name for name in ("rows.npy", "positive.npy", "buckets.bin", "counts.bin"))
    inputs = tuple(path for tasks in features for task in tasks for path in task.outputs)
    run.tasks(SAMPLE, [Task(SampleGatherTask(config.sample, len(features[0])), inputs, sampled)])
    model = workspace.folder / FIT.name / f"quality{SUFFIX}"
    (fitted,) = run.tasks(FIT, [Task(FitTask(config.fit, config.sample), sampled, (model,))])
    workspace.check([model])
    losses = losses_in(run.facts.get("extract", []))
    _write_file(config.output, model.read_bytes())
    _write_file(config.output.with_suffix(".json"), json.dumps(fitted.facts, indent=2).encode() + b"\n")
    return TrainedQualityModel(
        config.output, model_digest(config.output), fitted.facts, counts, losses, run.quarantined
    )


def _find(kind: str, patterns: Sequence[str]) -> list[Path | RemoteFile]:
    try:
        return find_inputs(patterns)
    except ConfigError as error:
        raise ConfigError(str(error).replace("input.paths", f"--{kind}")) from None


def _reading(config: TrainQualityConfig) -> InputConfig:
    paths = config.positive + config.negative
    return InputConfig(paths, text_field=config.text_field, text_separator=config.text_separator)


def _features(run: ShardRun, config: SampleConfig, texts: Shards) -> list[Task]:
    folder = run.workspace.folder / FEATURES.name
    tasks = [
        Task(config, (path,), tuple(folder / f"{name}{ending}" for ending in (".npy", ".buckets.bin", ".counts.bin")))
        for name, path in texts.items()
    ]
    run.tasks(FEATURES, tasks)
    return tasks


def _write_file(path: Path, data: bytes) -> None:
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_replacement(path, durable=True) as file:
            file.write(data)


def fit_model(config: FitTask, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: the sample's (rows, labels, buckets, counts) to a model; the facts are its report.

    ConfigError: fewer than two documents of a class to train on.
    """
    rows, positive = read_array(inputs[0]), read_array(inputs[1])
    held = rows["hold_out"] < config.fit.held_out * 2.0**64
    data = {}
    for kind, label in zip(KINDS, (False, True), strict=True):
        n, n_held = (int(np.count_nonzero(chosen & (positive == label))) for chosen in (~held, held))
        if n < 2:
            raise ConfigError(f"--{kind}: {n} different documents to train on; at least 2 are needed")
        data[kind] = {"documents": n, "held_out": n_held}
    examples = Examples(rows["start"], rows["stop"], map_numbers(inputs[2]), map_numbers(inputs[3]))
    found = fit(
        examples,
        positive,
        row_weights(positive, held, config.fit.balance),
        n_features=N_BUCKETS,
        l2=config.fit.l2,
        standardize=config.fit.standardize,
        max_iterations=config.fit.max_iterations,
        tolerance=_TOLERANCE,
    )
    scores = sigmoid(margins(examples, found.weights, found.bias))
    sample = np.stack([rows["order"], rows["text"], positive.astype(np.uint64)], axis=1)
    report = {
        "settings": {**plain(config.sample), **plain(config.fit)},
        "data": {**data, "sha256": hashlib.sha256(sample.astype("<u8").tobytes()).hexdigest()},
        "fit": {"iterations": found.iterations, "converged": found.converged, "loss": found.loss},
        "held_out": evaluate_scores(scores[held], positive[held], alpha=config.fit.alpha),
    }
    save_model(QualityModel(found.weights, found.bias, report), outputs[0])
    return TaskResult(facts=report)


def row_weights(positive: npt.NDArray[np.bool_], held: npt.NDArray[np.bool_], balance: str) -> Floats:
    """Return the weight of each document in the objective, (n,): held-out ones have 0, and the sum is 1."""
    weights = np.where(held, 0.0, 1.0)
    if balance == "equal":
        for label in (False, True):
            weights[positive == label] /= weights[positive == label].sum()
    return np.asarray(weights / weights.sum())


def evaluate_scores(scores: Floats, positive: npt.NDArray[np.bool_], *, alpha: float) -> dict[str, Any]:
    """Compare scores with labels: precision, recall and F1 at 0.5, and the shares that 0.5 and the Pareto rule keep.

    None means 0 / 0.
    """
    predicted = scores > 0.5
    n_true = int(np.count_nonzero(predicted & positive))
    precision = _ratio(n_true, int(np.count_nonzero(predicted)))
    recall = _ratio(n_true, int(np.count_nonzero(positive)))
    f1 = _ratio(2 * n_true, int(np.count_nonzero(predicted)) + int(np.count_nonzero(positive)))
    result: dict[str, Any] = {"precision": precision, "recall": recall, "f1": f1}
    for kind, label in zip(KINDS, (False, True), strict=True):
        of_class = scores[positive == label]
        bins = np.minimum((of_class * _SCORE_BINS).astype(np.int64), _SCORE_BINS - 1)
        result[kind] = {
            "scores": np.bincount(bins, minlength=_SCORE_BINS).tolist(),
            "kept_at_half": _ratio(int(np.count_nonzero(of_class > 0.5)), len(of_class)),
            "kept_by_pareto": _ratio(math.fsum(((2.0 - of_class) ** -alpha).tolist()), len(of_class)),
        }
    return result


def _ratio(part: float, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None


FIT = Stage("quality_fit", fit_model)
