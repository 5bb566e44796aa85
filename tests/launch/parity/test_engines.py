"""`triaxial parity --engines`: each engine's gradients, losses and checkpoints against those of the others.

The recipe has clipping and weight decay in effect, documents that make token counts differ between ranks, several
micro-batches a step and an untied head.
"""

import importlib.util
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


def parity(recipe: Path, folder: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], Any]:
    overrides = [word for key, value in HARD.items() for word in (f"--{key}", value)]
    done = subprocess.run(
        [sys.executable, "-m", "launch.main", "parity", str(recipe), *words, *overrides, "--output", str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert (folder / "parity.json").exists(), done.stderr
    return done, json.loads((folder / "parity.json").read_text())


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="the extra 'deepspeed' is not installed")
def test_deepspeed_trains_the_same_model_and_continues_our_checkpoints(tiny_corpus: Any, tmp_path: Path) -> None:
    layouts = ["--layout", "data=2", "--layout", "data=2,zero_stage=3", "--layout", "tensor=2"]
    done, found = parity(tiny_corpus.recipe, tmp_path, *layouts, "--engines", "native,deepspeed", "--steps", "6")
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
    for row in found["layouts"]:
        assert row["max_relative_gradient_difference"] < 1e-5, row["layout"]
        assert row["max_relative_loss_difference"] < 1e-5, row["layout"]
    resumes = {row["name"]: row["differences"] for row in found["resumes"]}
    assert set(resumes) == {"data=2 -> data=2,engine=deepspeed", "data=2,engine=deepspeed -> data=2"}
    for name, differences in resumes.items():
        assert differences[0] < 1e-6, name
        assert max(differences) < 1e-5, name
