"""The recipes of `triaxial demo --instruct`; `make rehearse ARGS="-k instruct_from_pages"` runs the whole demo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.config.run_config import read_run_config
from launch.demos import instruct

ROOT = Path(__file__).resolve().parents[3]


def test_the_runs_follow_each_other_on_one_model():
    base, *others = (read_run_config(f"demo{name}", []) for name in ("", "_sft", "_reward", "_ppo"))
    starts = [str(config.run.start_from) for config in others]
    assert starts == ["runs/demo", "runs/demo_sft", "runs/demo_sft"]
    assert {config.model for config in others} == {base.model}
    assert {config.data.tokenizer for config in others} == {base.data.tokenizer}
    assert [config.objective.kind for config in others] == list(instruct.TRAINED)


@pytest.mark.rehearse
@pytest.mark.timeout(3000)
def test_instruct_from_pages(tmp_path):
    for folder in ("gpt", "parallel", "data_prep", "launch"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    command = [sys.executable, "-m", "launch.main", "demo", "--instruct"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "runs/demo_ppo/summary.json").read_text())
    marks = summary["marks"]
    assert marks["base"] < marks["SFT"], "it has learned to answer"
    assert (tmp_path / "runs/demo_ppo/side_by_side.html").stat().st_size > 1000
