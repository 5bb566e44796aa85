"""The results of an evaluation in the real Weights & Biases client, offline, in a process of its own."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpt.evaluation.few_shot.scores import TaskScore

REPOSITORY = Path(__file__).parents[3]
PROGRAM = """
import json, sys
from pathlib import Path
from gpt.evaluation.few_shot.scores import TaskScore
from launch.evaluation.wandb_record import record_in_wandb
from launch.runs.saved_run import open_run
run, results = map(Path, sys.argv[1:])
report, scores = json.loads(results.read_text())
record_in_wandb(open_run(run), report, [TaskScore(**score) for score in scores], warn=print)
"""


def test_figures_and_scores_are_recorded_offline(made: Any, tmp_path: Path) -> None:
    run = shutil.copytree(made.directory, tmp_path / "run")
    scores = [dataclasses.asdict(TaskScore("sums", "2D+", 0, "exact_match", 0.25, None, 4, 0))]
    report = {
        "validation": {"wiki": {"loss_nats": 3.0, "perplexity": 20.0}},
        "text": {"texts": {"a.txt": {"nats_per_token": 2.0, "nats_per_word": None}}},
    }
    results = tmp_path / "results.json"  # the client records the command line, which must not have the names
    results.write_text(json.dumps([report, scores]))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(run), str(results)],
        env={**os.environ, "HOME": str(tmp_path), "WANDB_API_KEY": "", "OMP_NUM_THREADS": "1"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    (recorded,) = run.glob("wandb/offline-run-*")
    (table,) = recorded.glob("files/media/table/*.json")
    found = json.loads(table.read_text())
    assert [dict(zip(found["columns"], row, strict=True)) for row in found["data"]] == scores
    (stored,) = recorded.glob("*.wandb")
    data = stored.read_bytes()
    for name in ("few_shot/sums/0", "validation/wiki/loss", "validation/wiki/perplexity", "text/a.txt/nats_per_token"):
        assert name.encode() in data
    assert b"nats_per_word" not in data, "a mean over nothing is left out"
