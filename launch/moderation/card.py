"""A model card of a classifier run, in Markdown: what it scores, how it was trained, its figures and its limits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt.errors import ConfigError, escaped
from launch.moderation.classifier import OpenedClassifier
from launch.moderation.decisions import CALIBRATION, FOLDER, THRESHOLDS
from launch.runs.history import read_history


def model_card(classifier: OpenedClassifier) -> str:
    """The card. It has no text of the corpus: titles and definitions are those of the taxonomy."""
    config = classifier.run.checkpoint.state["config"]
    parts = [
        _title(classifier),
        _taxonomy(classifier),
        _training(classifier, config),
        _figures(classifier),
        _decisions(classifier),
        _limits(classifier, config),
    ]
    return "\n".join(part.rstrip() + "\n" for part in parts if part)


def _title(classifier: OpenedClassifier) -> str:
    return f"""# {escaped(classifier.taxonomy.name)}: a classifier of undesired content

Version `{classifier.version}`. It gives a text the probability of each category of the taxonomy
{escaped(classifier.taxonomy.label)} (digest `{classifier.taxonomy.digest[:16]}`). Made with Triaxial.
"""


def _taxonomy(classifier: OpenedClassifier) -> str:
    rows = "".join(
        f"| {one.id} | {_cell(one.title)} | {one.parent or ''} | {_cell(one.definition)} |\n"
        for one in classifier.taxonomy.categories
    )
    return f"## Categories\n\n| id | title | part of | definition |\n|---|---|---|---|\n{rows}"


def _training(classifier: OpenedClassifier, config: Mapping[str, Any]) -> str:
    state, objective = classifier.run.checkpoint.state, config.get("objective", {})
    lines = [
        f"{classifier.run.model.parameters:,} parameters in the trunk, {classifier.run.model.n_layers} layers of width "
        f"{classifier.run.model.d_model}; head: {objective.get('head')}; pool: {objective.get('pool')}; "
        f"attention: {objective.get('attention')}",
        f"{state.get('step', 0):,} steps, {state.get('tokens_seen', 0):,} tokens",
    ]
    if start := config.get("run", {}).get("start_from"):
        lines.append(f"started from `{escaped(str(start))}`")
    weights = objective.get("class_weights") or {}
    if weights:
        lines.append("class weights: " + ", ".join(f"{name} {value:g}" for name, value in weights.items()))
    if objective.get("adversarial_weight"):
        lines.append(f"domain adversarial training with weight {objective['adversarial_weight']:g}")
    found = "".join(f"- {line}\n" for line in lines)
    return f"## Training\n\n{found}\n{_corpora(config)}"


def _corpora(config: Mapping[str, Any]) -> str:
    """Texts of each corpus, and how many have a positive and a known label, if its corpus.json is still there."""
    rows = []
    for split in ("train", "validation"):
        for corpus in config.get("data", {}).get(split) or ():
            prefix = Path(str(corpus.get("path", "")))
            rows.append(f"| {split} | {escaped(prefix.name)} | {_count(prefix)} |\n")
    return f"| split | corpus | texts |\n|---|---|---|\n{''.join(rows)}" if rows else ""


def _count(prefix: Path) -> str:
    from gpt.token_files.corpus import open_tokens

    try:
        return f"{open_tokens(prefix).n_documents:,}"
    except (ConfigError, OSError):
        return "not on this machine"


def _figures(classifier: OpenedClassifier) -> str:
    """The last validation of the run."""
    history = read_history(classifier.run.run_directory)
    rows = []
    for name in sorted(history.metrics):
        if name.startswith("validation/") and "violations" not in name:
            corpus, _, measure = name.removeprefix("validation/").rpartition("/")
            rows.append(f"| {escaped(corpus)} | {escaped(measure)} | {float(history.metrics[name].values[-1]):.4g} |\n")
    head = "| validation corpus | measure | last value |\n|---|---|---|\n"
    return f"## Figures\n\n{head}{''.join(rows)}" if rows else ""


def _decisions(classifier: OpenedClassifier) -> str:
    run = classifier.run.run_directory / FOLDER
    rows = "".join(f"| {name} | {value:.4g} |\n" for name, value in classifier.thresholds.items())
    calibration = "has a calibration" if (run / CALIBRATION).is_file() else "is not calibrated"
    chosen = "chosen thresholds" if (run / THRESHOLDS).is_file() else "the threshold 0.5"
    head = "| category | threshold |\n|---|---|\n"
    return f"## Decisions\n\nThe run {calibration} and has {chosen}.\n\n{head}{rows}"


def _limits(classifier: OpenedClassifier, config: Mapping[str, Any]) -> str:
    return f"""## Limits

- A score is an estimate for texts like those that were labelled. Other domains and languages need their own check.
- A text of more than {classifier.window} tokens is scored in windows, with the largest score of each category.
  So does an exported folder with its own model class. Without one, cut long texts: tokenizer(..., truncation=True).
- It can be deceived by spelling, spacing and unusual symbols. Measure that with `triaxial moderate probe`.
- Use scores to order work for people, and check thresholds again after each new version.
"""


def _cell(text: str) -> str:
    return " ".join(escaped(text).split()).replace("|", "\\|").replace("<", "&lt;")
