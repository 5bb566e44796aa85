"""Enter finished tasks in the records of a work folder."""

import json
import platform

import numpy as np
import pytest
from rich.console import Console

from data_prep.documents.counts import Counts
from data_prep.execution.files import describe_file
from data_prep.execution.fingerprint import Fingerprint
from data_prep.execution.progress import ProgressBars
from data_prep.execution.records import TaskRecords
from data_prep.execution.tasks import Stage, Task, TaskOutcome, TaskRequest, TaskResult
from data_prep.execution.workspace import Workspace

xxhash = pytest.importorskip("xxhash", reason="the extra 'data' is not installed")


def test_an_entry_says_what_made_a_file(tmp_path, functions, sources, run_stage):
    run_stage(tmp_path / "w", functions.copy, sources, functions.Config("p", tmp_path / "log"))
    lines = [json.loads(line) for line in (tmp_path / "w/manifest.jsonl").read_text().splitlines()]
    (entry,) = [line for line in lines if line.get("inputs", [{}])[0].get("path") == str(sources[0])]
    assert entry["counts"] == [Counts("copy", 2, 1, 10, 5, {"why": 1}).as_dict()]
    facts = {"path": "copy/a.out", "bytes": 5, "digest": xxhash.xxh3_128_hexdigest(b"pa.in")}
    assert entry["outputs"] == [{**facts, "mtime_ns": (tmp_path / "w/copy/a.out").stat().st_mtime_ns}]
    given = {"path": str(sources[0]), "bytes": 4, "digest": xxhash.xxh3_128_hexdigest(b"a.in")}
    assert entry["inputs"] == [given]
    assert entry["versions"]["python"] == platform.python_version()
    assert entry["versions"]["numpy"] == np.__version__
    assert 0 < entry["elapsed_s"] < 60
    (settings,) = [line for line in lines if line.get("of_tasks") == entry["settings"]]
    assert settings["config"] == {"prefix": "p", "log": str(tmp_path / "log")}
    assert settings["of"] == "copy"
    assert {"stage_functions", "data_prep.documents.counts"} < settings["code"].keys()


def test_a_task_is_finished_once_its_outputs_are_in_place_and_entered(tmp_path, functions):
    records = TaskRecords(tmp_path)
    records.open("manifest.jsonl")
    stage, fingerprint = Stage("copy", functions.copy), Fingerprint({"module": "digest"}, {"python": "3"})
    for name in ("a", "b", "left"):
        (tmp_path / name).write_text(name)
    task = Task(None, (tmp_path / "a", tmp_path / "b"), (tmp_path / "out",))
    (key,) = records.keys(stage, fingerprint, [task])
    assert not records.is_finished(key)
    request = TaskRequest(stage, task, fingerprint, records.input_bytes(task), tmp_path, tmp_path, "host")
    left = TaskOutcome(
        TaskResult([], {"n": 1}), (tmp_path / "left",), [describe_file(tmp_path / "left")], elapsed_s=2.0, host="host"
    )
    records.add_task(request, key, left)
    records.sync()
    assert (tmp_path / "out").read_text() == "left"
    assert not (tmp_path / "left").exists()
    assert records.is_finished(key)
    assert (records.finished(task, key).facts, records.finished(task, key).elapsed_s) == ({"n": 1}, 2.0)
    assert records.keys(stage, Fingerprint({"module": "other"}, {"python": "3"}), [task]) != [key]
    assert records.keys(stage, Fingerprint({"module": "digest"}, {"python": "4"}), [task]) != [key]
    (tmp_path / "out").write_text("changed")
    assert not records.is_finished(key)
    records.close()


def test_many_inputs_are_listed_once_for_all_tasks_that_share_them(tmp_path, functions, run_stage):
    """40 inputs: over the number that a task's own line may list."""
    inputs = [tmp_path / f"{n:02}.in" for n in range(40)]
    for path in inputs:
        path.write_text(path.name)
    config = functions.Config("p", tmp_path / "log")
    with Workspace(tmp_path / "w", n_workers=1, progress=ProgressBars(Console(quiet=True))) as workspace:
        tasks = [Task(config, tuple(inputs), (workspace.folder / f"{n}.out",)) for n in range(3)]
        workspace.run(Stage("join", functions.copy), tasks)
    lines = [json.loads(line) for line in (tmp_path / "w/manifest.jsonl").read_text().splitlines()]
    shared = [line for line in lines if "inputs" in line and "of_tasks" in line]
    assert len(shared) == 1
    assert [item["path"] for item in shared[0]["inputs"]] == [str(path) for path in inputs]
    assert {line["inputs"] for line in lines if line.get("stage") == "join"} == {shared[0]["of_tasks"]}
