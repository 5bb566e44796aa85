"""The results of an evaluation in the real Weights & Biases client, offline."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from gpt.evaluation.few_shot.scores import TaskScore
from launch.evaluation.wandb_record import record_in_wandb
from launch.runs.saved_run import open_run


def test_figures_and_scores_are_recorded_offline(made: Any, tmp_path: Path) -> None:
    run = shutil.copytree(made.directory, tmp_path / "run")
    scores = [TaskScore("sums", "2D+", 0, "exact_match", 0.25, None, 4, 0)]
    report = {
        "validation": {"wiki": {"loss_nats": 3.0, "perplexity": 20.0}},
        "text": {"texts": {"a.txt": {"nats_per_token": 2.0, "nats_per_word": None}}},
    }
    warnings: list[str] = []
    record_in_wandb(open_run(run), report, scores, warn=warnings.append)
    assert warnings == []
    (recorded,) = run.glob("wandb/offline-run-*")
    (table,) = recorded.glob("files/media/table/*.json")
    found = json.loads(table.read_text())
    assert [dict(zip(found["columns"], row, strict=True)) for row in found["data"]] == [dataclasses.asdict(scores[0])]
    (stored,) = recorded.glob("*.wandb")
    data = stored.read_bytes()
    for name in ("few_shot/sums/0", "validation/wiki/loss", "validation/wiki/perplexity", "text/a.txt/nats_per_token"):
        assert name.encode() in data
    assert b"nats_per_word" not in data, "a mean over nothing is left out"
