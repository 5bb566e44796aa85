"""Two evaluations are compared item by item."""

import json
from pathlib import Path
from typing import Any

import pytest

from gpt.errors import ConfigError
from launch.evaluation.task_differences import holds_samples, read_items, task_differences


def write(folder: Path, values: list[float], *, task: str = "sums_0-shot", digest: str = "d") -> Path:
    folder.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = [
        {
            "doc_id": i,
            "doc_hash": f"{digest}{i}",
            "filter": "none",
            "metrics": ["acc", "pair"],
            "acc": v,
            "pair": [v, 1],
        }
        for i, v in enumerate(values)
    ]
    (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_difference_is_by_item(tmp_path: Path) -> None:
    before, after = write(tmp_path / "a", [0.0, 1.0, 1.0, 0.0]), write(tmp_path / "b", [1.0, 1.0, 0.0, 1.0])
    (found,) = task_differences(read_items(before), read_items(after))
    assert (found.task, found.metric, found.items) == ("sums_0-shot", "acc", 4)
    assert (found.before, found.after, found.difference.estimate) == (0.5, 0.75, 0.25)
    assert found.difference.low < 0.25 < found.difference.high
    assert holds_samples(before)
    assert not holds_samples(tmp_path)


def test_other_questions_and_other_tasks_are_refused(tmp_path: Path) -> None:
    before = read_items(write(tmp_path / "a", [0.0]))
    with pytest.raises(ConfigError, match="question 0 differs"):
        task_differences(before, read_items(write(tmp_path / "b", [0.0], digest="e")))
    with pytest.raises(ConfigError, match="no task and metric in common"):
        task_differences(before, read_items(write(tmp_path / "c", [0.0], task="words_0-shot")))
