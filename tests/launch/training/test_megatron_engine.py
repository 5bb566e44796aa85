"""`triaxial train` with Megatron-core: evaluation, samples, replica checks and checkpoints, and a change of engine.

The ranks are those of megatron_train_program.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("megatron.core")
pytestmark = pytest.mark.timeout(900)

HERE = Path(__file__).resolve().parents[1]
WORDS = [
    *("--metrics.wandb", "disabled", "--run.peak_flops_per_s", "1e12", "--train.sample_every_tokens", "3072"),
    *("--train.sample_new_tokens", "8"),
    *("--train.evaluate_every_tokens", "3072", "--health.replica_check_every_steps", "4"),
]
MEGATRON = ["--parallel.engine", "megatron"]


def train(recipe, run, *words):
    command = [sys.executable, "-W", "ignore", str(HERE / "megatron_train_program.py"), "train", str(recipe)]
    done = subprocess.run(
        [*command, "--run.directory", str(run), *WORDS, *words],
        env={**os.environ, "PYTHONPATH": f"{HERE.parents[1]}:{HERE}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return done


def series(run, key):
    """A metric by step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in lines if key in line}


def assert_same_series(run, other, key, *, tolerance):
    ours, expected = series(run, key), series(other, key)
    assert expected
    assert ours.keys() >= expected.keys(), "a run that stopped on its way evaluated there too"
    assert all(abs(ours[step] - value) <= tolerance * abs(value) for step, value in expected.items())


def test_a_run_that_changes_engine_has_the_native_curve(tiny_corpus, tmp_path):
    native, changed = tmp_path / "native", tmp_path / "changed"
    train(tiny_corpus.recipe, native)
    layout = ["--nproc", "2", "--parallel.pipeline", "2", "--train.total_tokens", "4096"]
    train(tiny_corpus.recipe, changed, *MEGATRON, *layout)
    train(tiny_corpus.recipe, changed)
    for key in ("loss", "validation/topics/loss"):
        assert_same_series(changed, native, key, tolerance=1e-5)
