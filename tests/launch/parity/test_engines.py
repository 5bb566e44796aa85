"""`triaxial parity --engines`: each engine's gradients, losses and checkpoints against those of the others.

The recipe has clipping and weight decay in effect, documents that make token counts differ between ranks, several
micro-batches a step and an untied head.
"""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HARD = {
    "data.document_mask": "true",
    "model.tied": "false",
    "optimizer.max_gradient_norm": "0.1",
    "optimizer.weight_decay": "0.3",
    "batch.micro_batch_size": "2",
}
pytestmark = pytest.mark.timeout(600)


TRIAXIAL = ["-m", "launch.main"]
ON_CPU = ["-W", "ignore", str(Path(__file__).parents[1] / "megatron_parity.py")]
INSTALLED = {name: importlib.util.find_spec(name) is not None for name in ("deepspeed", "megatron")}


def parity(
    recipe: Path, folder: Path, *words: str, keys: dict[str, str], command: list[str] = TRIAXIAL
) -> tuple[subprocess.CompletedProcess[str], Any]:
    overrides = [word for key, value in keys.items() for word in (f"--{key}", value)]
    done = subprocess.run(
        [sys.executable, *command, "parity", str(recipe), *words, *overrides, "--output", str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert (folder / "parity.json").exists(), done.stderr
    return done, json.loads((folder / "parity.json").read_text())


@pytest.mark.skipif(not INSTALLED["deepspeed"], reason="the extra 'deepspeed' is not installed")
def test_deepspeed_trains_the_same_model_and_continues_our_checkpoints(tiny_corpus: Any, tmp_path: Path) -> None:
    layouts = ["--layout", "data=2", "--layout", "data=2,zero_stage=3", "--layout", "tensor=2"]
    done, found = parity(
        tiny_corpus.recipe, tmp_path, *layouts, "--engines", "native,deepspeed", "--steps", "6", keys=HARD
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    names = [row["layout"] for row in found["layouts"]]
    assert names == [
        "data=2",
        "data=2,engine=deepspeed",
        "data=2,zero_stage=3",
        "data=2,engine=deepspeed,zero_stage=3",
        "tensor=2",
    ]
    assert [each["layout"] for each in found["skipped"]] == ["tensor=2,engine=deepspeed"]
    assert min(found["reference"]["grad_norms"]) > 0.1, "clipping is active"
    check_close(found)
    resumes = {row["name"] for row in found["resumes"]}
    assert resumes == {"data=2 -> data=2,engine=deepspeed", "data=2,engine=deepspeed -> data=2"}


def check_close(found: Any) -> None:
    for row in found["layouts"]:
        assert row["max_relative_gradient_difference"] < 1e-5, row["layout"]
        assert row["max_relative_loss_difference"] < 1e-5, row["layout"]
    for row in found["resumes"]:
        assert row["differences"][0] < 1e-6, row["name"]
        assert max(row["differences"]) < 1e-5, row["name"]


@pytest.mark.skipif(not all(INSTALLED.values()), reason="the extras 'deepspeed' and 'megatron' are not installed")
def test_each_of_three_engines_continues_the_checkpoints_of_the_others(tiny_corpus: Any, tmp_path: Path) -> None:
    """Megatron's attention takes no documents, so the token counts of ranks are equal here. The head is tied."""
    keys = {key: value for key, value in HARD.items() if key not in ("data.document_mask", "model.tied")}
    words = ["--layout", "data=2", "--engines", "native,deepspeed,megatron", "--steps", "3"]
    done, found = parity(tiny_corpus.recipe, tmp_path, *words, keys=keys, command=ON_CPU)
    assert done.returncode == 0, (done.stdout, done.stderr)
    layouts = ["data=2", "data=2,engine=deepspeed", "data=2,engine=megatron"]
    assert [row["layout"] for row in found["layouts"]] == layouts
    check_close(found)
    pairs = {(row["saver"], row["loader"]) for row in found["resumes"]}
    assert pairs == set(itertools.permutations(layouts, 2))
