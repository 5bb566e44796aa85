"""The estimate before training: how many checkpoints exist at one time, and what the user reads about them.

test_save_faults.py has disks that are too small.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from launch.config.run_config import read_run_config
from launch.main import main
from launch.training.build import build_run
from launch.training.checkpoint_space import max_checkpoints


@pytest.mark.parametrize(
    ("settings", "expected"),  # the run has 6,144 tokens
    [
        ({"every_tokens": 1024, "keep_last": 2}, 3),  # two kept, and the one being written
        ({"every_tokens": 1024, "keep_last": 2, "keep_every_tokens": 2048}, 6),  # three of them permanent
        ({"every_tokens": 1024, "keep_last": 9}, 6),  # no more than there are saves
        ({"every_tokens": 4096}, 2),
    ],
)
def test_the_largest_number_of_checkpoints(tiny_corpus: Any, settings: dict[str, int], expected: int) -> None:
    words = [word for key, value in settings.items() for word in (f"--checkpoint.{key}", str(value))]
    run = build_run(read_run_config(tiny_corpus.recipe, words), {}, peak_flops_per_s=0.0)
    assert max_checkpoints(run) == expected


def test_a_run_reports_the_size_of_its_checkpoints(tiny_corpus: Any, tmp_path: Path) -> None:
    words = ["train", str(tiny_corpus.recipe), "--run.directory", str(tmp_path / "run"), "--metrics.wandb", "disabled"]
    words += ["--run.peak_flops_per_s", "1e12", "--train.total_tokens", "512", "--checkpoint.every_tokens", "512"]
    (tmp_path / "disk").mkdir()
    words += ["--checkpoint.fast_directory", str(tmp_path / "disk"), "--checkpoint.fast_every_tokens", "512"]
    assert main(words) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    shared, local = (line["text"] for line in lines if line["kind"] == "checkpoint_estimate")
    saved = tmp_path / "run" / "checkpoints" / "step-000000001"
    size = sum(file.stat().st_size for file in saved.iterdir())
    assert shared.startswith("checkpoints: ")
    assert abs(float(shared.split()[1]) * 1e6 - size) < 20_000, (shared, size)
    assert "at most 1 at a time, 0 exist" in shared
    assert local.startswith("local tier: ")
    assert local.endswith(f" MB each time in {tmp_path / 'disk'} of each node")
