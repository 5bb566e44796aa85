"""A training step on fake CUDA tensors, for every axis, schedule and objective: devices, host waits, communication.

It finds tensors on the wrong device, operators for a CPU, and code that waits for the GPU.
docs/results/training/cuda_without_cuda.md lists what it cannot find.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import fake_cuda
import pytest

HERE = Path(__file__).resolve().parents[1]
PIPELINE = {"pipeline": 2, "precision": "bf16"}
MODERN = {"n_kv_heads": 2, "positions": "rope", "norm": "rmsnorm", "activation": "swiglu", "tied": False, "bias": False}
JOBS = {
    "one process": {"ranks": 1, "parallel": {}, "compare": True},
    "fp8": {
        "ranks": 4,
        "parallel": {"tensor": 2, "precision": "fp8", "fp8_min_width": 64, "zero_stage": 3, "recompute": "selective"},
        "compare": True,
    },
    "fp32": {"ranks": 1, "parallel": {"precision": "fp32"}},
    "tensor": {"ranks": 2, "parallel": {"tensor": 2}, "model": MODERN, "compare": True},
    "ZeRO 0": {"ranks": 2, "parallel": {"zero_stage": 0}},
    "ZeRO 2": {"ranks": 2, "parallel": {"zero_stage": 2, "recompute": "selective"}},
    "ZeRO 3, hybrid": {"ranks": 8, "parallel": {"zero_stage": 3, "data_shard": 2, "tensor": 2}, "compare": True},
    "gpipe": {"ranks": 2, "parallel": {**PIPELINE, "schedule": "gpipe", "recompute": "full"}},
    "1f1b": {"ranks": 4, "parallel": {**PIPELINE, "tensor": 2}},
    "interleaved": {"ranks": 2, "parallel": {**PIPELINE, "schedule": "interleaved_1f1b"}},
    "zero bubble": {"ranks": 2, "parallel": {**PIPELINE, "schedule": "zbv_zero_bubble"}},
    "dualpipe": {"ranks": 2, "parallel": {**PIPELINE, "schedule": "dualpipev"}},
    "documents": {"ranks": 2, "parallel": {**PIPELINE, "recompute": "selective"}, "document_mask": True},
    "sft": {"ranks": 2, "parallel": {"tensor": 2}, "objective": {"kind": "sft"}, "document_mask": True},
    "reward": {"ranks": 2, "parallel": PIPELINE, "objective": {"kind": "reward"}, "document_mask": True},
}
QUICK = ("one process", "fp8", "tensor", "ZeRO 3, hybrid", "1f1b", "documents", "reward")  # each new subject once
THE_WAIT = ["reads from the GPU", "parallel/engines/sums.py:from_tensor"]  # for the sums of the step, once


def run(names, folder):
    environment = {**os.environ, "LD_PRELOAD": str(fake_cuda.build(folder)), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = f"{HERE.parents[1]}:{HERE}"
    (folder / "jobs.json").write_text(json.dumps([JOBS[name] for name in names]))
    command = [sys.executable, "cuda_step_ranks.py", folder / "jobs.json", folder / "results.json"]
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(names, json.loads((folder / "results.json").read_text()), strict=True))


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    return run(QUICK, tmp_path_factory.mktemp("cuda"))


def check(found):
    assert "error" not in found, found["error"]
    assert found["devices"] == ["cuda"], "parameters and the optimizer's state"
    assert found["waits"] == [THE_WAIT]
    of_a_cpu = [operator for operator in found["operators"] if "mkldnn" in operator or "for_cpu" in operator]
    assert not of_a_cpu


@pytest.mark.timeout(450)
@pytest.mark.parametrize("name", QUICK)
def test_a_step_runs_on_the_gpu_and_waits_for_it_once(steps, name):
    check(steps[name]["cuda"])


@pytest.mark.rehearse
@pytest.mark.timeout(450)
def test_a_step_of_every_other_layout(tmp_path):
    for found in run([name for name in JOBS if name not in QUICK], tmp_path).values():
        check(found["cuda"])


@pytest.mark.timeout(450)
@pytest.mark.parametrize("name", [name for name in QUICK if JOBS[name].get("compare")])
def test_communication_is_that_of_the_dry_run(steps, name):
    """The dry run, which is compared with real processes, has its tensors on the CPU."""
    assert steps[name]["cuda"]["traffic"] == steps[name]["cpu"]["traffic"]


@pytest.mark.timeout(450)
def test_documents_take_flex_attention(steps):
    operators = steps["documents"]["cuda"]["operators"]
    assert operators["flex_attention"] == operators["flex_attention_backward"], "selective recomputation keeps it"
    assert "flex_attention" not in steps["one process"]["cuda"]["operators"]
