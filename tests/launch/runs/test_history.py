"""Read the files of a run directory: takes, gaps, events and checkpoints."""

import json
from pathlib import Path

import numpy as np
import pytest

from gpt.errors import ConfigError
from launch.runs.history import (
    furthest_step,
    read_events,
    read_history,
    read_takes,
    stored_checkpoints,
)
from launch.runs.series import Series, runs_without_gaps, settle


def write_metrics(path: Path, *records: tuple[int, float]) -> None:
    path.write_text("".join(json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in records))


def pairs(series: Series) -> list[tuple[int, float]]:
    return list(zip(series.steps.tolist(), series.values.tolist(), strict=True))


def test_repeated_steps_count_as_they_were_last_taken(tmp_path: Path) -> None:
    write_metrics(tmp_path / "m", (1, 5.0), (2, 4.0), (3, 3.0), (2, 4.5), (3, 3.5), (4, 2.5))
    metrics, superseded = settle(read_takes(tmp_path / "m", []))
    assert pairs(metrics["loss"]) == [(1, 5.0), (2, 4.5), (3, 3.5), (4, 2.5)]
    assert [pairs(take["loss"]) for take in superseded] == [[(2, 4.0), (3, 3.0)]]


def test_a_metric_that_one_take_lacks_keeps_no_superseded_value() -> None:
    def series(*steps: int) -> Series:
        return Series(np.array(steps), np.array(steps, dtype=np.float64))

    metrics, lost = settle([{"a": series(1, 2, 3), "b": series(3)}, {"a": series(2, 3, 4)}])
    assert metrics["a"].steps.tolist() == [1, 2, 3, 4]
    assert "b" not in metrics
    assert [{name: s.steps.tolist() for name, s in take.items()} for take in lost] == [{"a": [2, 3], "b": [3]}]


def test_a_series_is_split_at_long_gaps() -> None:
    series = Series(np.array([1, 2, 3, 100, 101]), np.arange(5.0))
    assert [pairs(part) for part in runs_without_gaps(series)] == [
        [(1, 0.0), (2, 1.0), (3, 2.0)],
        [(100, 3.0), (101, 4.0)],
    ]


def test_lines_that_cannot_be_read_are_counted_but_a_last_one_is_being_written(tmp_path: Path) -> None:
    event = {"time": "2026-01-02T03:04:05+00:00", "kind": "checkpoint_saved", "step": 9, "checkpoint_step": 8}
    (tmp_path / "e").write_text(f"{json.dumps(event)}\n[1]\n{{\n{{")
    problems: list[str] = []
    (found,) = read_events(tmp_path / "e", problems)
    assert (found.kind, found.step, found.about_step, found.time) == ("checkpoint_saved", 9, 8, 1767323045.0)
    assert problems == ["e: 2 lines that cannot be read, skipped"]


def test_the_bytes_of_a_long_file_are_reported_while_it_is_read(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.jsonl", *((step, 1.0) for step in range(50_000)))
    size, read = (tmp_path / "metrics.jsonl").stat().st_size, list[int]()
    read_history(tmp_path, advance=read.append)
    assert len(read) > 3
    assert 0.7 * size < sum(read) <= size


def test_checkpoints_are_listed_oldest_first(tmp_path: Path) -> None:
    for step, size in ((20, 5), (3, 7)):
        folder = tmp_path / "checkpoints" / f"step-{step:09d}"
        folder.mkdir(parents=True)
        (folder / "a").write_bytes(bytes(size))
    found = stored_checkpoints(tmp_path / "checkpoints")
    assert [(one.step, one.size_bytes) for one in found] == [(3, 7), (20, 5)]
    assert furthest_step(tmp_path) == 20
    assert stored_checkpoints(tmp_path / "none") == []


def test_a_folder_that_is_not_a_run_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run directory"):
        read_history(tmp_path)
    write_metrics(tmp_path / "metrics.jsonl", (1, 5.0), (2, 4.0))
    history = read_history(tmp_path)
    assert (history.last_step, history.last("loss"), history.setting("run", "seed")) == (2, 4.0, None)


def test_the_folder_above_a_run_is_answered_with_the_run(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(ConfigError, match=r"is not a run directory.* checkpoints$"):
        read_history(tmp_path)
    (tmp_path / "run" / "metrics.jsonl").touch()
    with pytest.raises(ConfigError, match=rf"Did you mean {tmp_path / 'run'}\?"):
        read_history(tmp_path)
