"""`triaxial train` with DeepSpeed on two ranks: evaluation, samples, checkpoints, another layout, another engine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed; it comes with the extra 'deepspeed'")
pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).resolve().parents[3]
WORDS = [
    *("--metrics.wandb", "disabled", "--run.peak_flops_per_s", "1e12", "--metrics.log_every_steps", "1"),
    *("--train.sample_every_tokens", "3072", "--train.sample_new_tokens", "8", "--train.evaluate_every_tokens", "3072"),
    *("--health.replica_check_every_steps", "4"),
]
DEEPSPEED = ["--nproc", "2", "--parallel.engine", "deepspeed"]


def train(recipe, run, *words):
    command = [sys.executable, "-m", "launch.main", "train", str(recipe), "--run.directory", str(run), *WORDS, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    return done


def series(run, key):
    """A metric by step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in lines if key in line}


def test_a_run_that_changes_layout_and_engine_has_the_native_curve(tiny_corpus, tmp_path):
    native, changed = tmp_path / "native", tmp_path / "changed"
    train(tiny_corpus.recipe, native)
    done = train(tiny_corpus.recipe, changed, *DEEPSPEED, "--parallel.zero_stage", "3", "--train.total_tokens", "2048")
    assert "ZeRO 3 over 2, engine deepspeed" in done.stdout
    assert "Warning" not in done.stdout + done.stderr
    assert "DeepSpeed" not in done.stdout + done.stderr, "its own messages are left out"
    train(tiny_corpus.recipe, changed, *DEEPSPEED, "--parallel.pipeline", "2", "--train.total_tokens", "4096")
    train(tiny_corpus.recipe, changed)
    for key in ("loss", "gradient_norm", "validation/topics/loss"):
        ours, expected = series(changed, key), series(native, key)
        assert expected
        assert expected.keys() <= ours.keys()
        assert all(abs(ours[step] - value) <= 1e-5 * abs(value) for step, value in expected.items()), key
