"""The alignment tax: item by item, how a task's metrics differ between two evaluations of the same questions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt.errors import ConfigError
from gpt.evaluation.intervals import Interval, bootstrap_interval
from gpt.files.json_files import read_json_lines

_SAMPLES = "*-shot.jsonl"  # as launch.evaluation.sample_logs names them
RESAMPLES = 2000

Items = dict[tuple[str, str], dict[str, tuple[str, float]]]  # (task with shots, metric): item -> (its digest, value)


@dataclass(frozen=True)
class TaskDifference:
    """The means of one metric before and after, and their difference with a 95% interval by item."""

    task: str
    metric: str
    items: int
    before: float
    after: float
    difference: Interval


def holds_samples(folder: Path) -> bool:
    """Return whether a folder has the questions that `triaxial evaluate --log-samples` writes."""
    return folder.is_dir() and any(folder.glob(_SAMPLES))


def read_items(folder: Path) -> Items:
    """Read the values of each task's metrics by item. Metrics that are no number of an item are left out."""
    found: Items = {}
    for file in sorted(folder.glob(_SAMPLES)):
        for _, sample in read_json_lines(file):
            names = sample.get("metrics", [])
            for name in names if isinstance(names, list) else []:
                value = sample.get(name)
                if isinstance(value, int | float):
                    filtered = sample.get("filter", "none")
                    metric = str(name) if filtered == "none" else f"{name} ({filtered})"
                    items = found.setdefault((file.stem, metric), {})
                    items[str(sample.get("doc_id"))] = (str(sample.get("doc_hash")), float(value))
    return found


def task_differences(before: Items, after: Items) -> list[TaskDifference]:
    """Compare the items that both have. ConfigError: no metric in common, or other questions under one number."""
    found = []
    for key, items in before.items():
        others = after.get(key, {})
        common = [item for item in items if item in others]
        changed = [item for item in common if items[item][0] != others[item][0]]
        if changed:
            raise ConfigError(
                f"{key[0]}: question {changed[0]} differs between the two evaluations. Use the same data and --seed"
            )
        if not common:
            continue
        pairs = [(items[item][1], others[item][1]) for item in common]
        found.append(
            TaskDifference(
                *key,
                items=len(pairs),
                before=sum(one for one, _ in pairs) / len(pairs),
                after=sum(other for _, other in pairs) / len(pairs),
                difference=bootstrap_interval([[other - one] for one, other in pairs], resamples=RESAMPLES),
            )
        )
    if not found:
        raise ConfigError("the two evaluations have no task and metric in common. Evaluate the same --tasks")
    return found


def difference_record(one: TaskDifference) -> dict[str, Any]:
    """A difference as JSON."""
    bounds = {"estimate": one.difference.estimate, "low": one.difference.low, "high": one.difference.high}
    return {
        "task": one.task,
        "metric": one.metric,
        "items": one.items,
        "before": one.before,
        "after": one.after,
        "difference": bounds,
    }
