"""A user's own task of lm-evaluation-harness is found, and its questions are written with their answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from launch.evaluation.sample_logs import write_samples

TASK = """task: own_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/test.jsonl}}, cache_dir: {folder}/cache}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def test_own_tasks_run_and_their_items_are_logged(made: Any, triaxial: Any, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra 'eval'")
    rows = [{"q": f"Q: What is {i} plus 2?", "choices": ["a word", "a name"], "gold": i % 2} for i in range(4)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.yaml").write_text(TASK.format(folder=tmp_path))
    words = ["--tasks", "own_choices", "gpt3_two_digit_addition", "--num-fewshot", "0", "--limit", "3"]
    words += ["--include-path", tmp_path, "--log-samples", tmp_path / "samples", "--max-validation-tokens", "64"]
    assert triaxial("evaluate", made.directory, *words, "--json", tmp_path / "report.json") == 0
    found = {
        path.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in (tmp_path / "samples").iterdir()
    }
    assert sorted(found) == ["gpt3_two_digit_addition_0-shot.jsonl", "own_choices_0-shot.jsonl"]
    own = found["own_choices_0-shot.jsonl"]
    assert [sample["doc"]["q"] for sample in own] == [row["q"] for row in rows[:3]]
    scores = {s["task"]: s["value"] for s in json.loads((tmp_path / "report.json").read_text())["few_shot"]}
    assert sum(sample["acc"] for sample in own) / 3 == pytest.approx(scores["own_choices"])


def test_a_name_cannot_leave_the_folder_and_other_ranks_write_nothing(tmp_path: Path) -> None:
    write_samples(tmp_path, "../x/y", 5, [{"score": float("nan")}], writes=True)
    write_samples(tmp_path, "z", 5, [{"score": 1}], writes=False)
    assert [path.name for path in tmp_path.iterdir()] == [".._x_y_5-shot.jsonl"]
    assert json.loads((tmp_path / ".._x_y_5-shot.jsonl").read_text()) == {"score": None}
