"""Every layout trains the same model: against one process, and that one against plain torch without our engine."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from gpt.config import ModelConfig
from gpt.initialisation import initialise
from gpt.model import GPT

PROGRAM = Path(__file__).parent / "layout_runs.py"
STEPS = 20
MODERN = {
    "positions": "rope",
    "norm": "rmsnorm",
    "activation": "swiglu",
    "bias": False,
    "tied": False,
    "n_kv_heads": 2,
    "d_ff": 64,
}
LAYOUTS = {
    "one": (1, {}),
    "data 2": (2, {"data": 2}),
    "data 2, replicated": (2, {"data": 2, "zero_stage": 0}),
    "data 2, zero 3": (2, {"data": 2, "zero_stage": 3}),
    "tensor 2": (2, {"tensor": 2}),
    "pipeline 2": (2, {"pipeline": 2}),
    "pipeline 2, gpipe": (2, {"pipeline": 2, "schedule": "gpipe"}),
    "tensor 2 x pipeline 2": (4, {"tensor": 2, "pipeline": 2}),
    "tensor 2 x pipeline 2, recompute": (4, {"tensor": 2, "pipeline": 2, "recompute": "full"}),
    "data 4, hybrid": (4, {"data": 4, "data_shard": 2}),
    "tensor 2 x pipeline 2 x data 2": (8, {"tensor": 2, "pipeline": 2, "data": 2}),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts")
    runs = []
    for name, (world_size, parallel) in LAYOUTS.items():
        micro = 1 if world_size == 8 else 2 if parallel.get("data") != 4 else 1
        runs.append(run(name, world_size, parallel, micro_batch_size=micro))
        if name in ("one", "tensor 2 x pipeline 2", "data 2, zero 3"):
            runs.append(run(f"modern, {name}", world_size, parallel, model=MODERN))
        if name in ("one", "tensor 2 x pipeline 2"):
            runs.append(run(f"bf16, {name}", world_size, {**parallel, "precision": "bf16"}))
    runs.append(run("bf16, one, micro-batch 4", 1, {"precision": "bf16"}, micro_batch_size=4))
    saved = str(folder / "checkpoints")
    runs.append(run("save", 4, {"tensor": 2, "pipeline": 2}, steps=8, save=saved))
    again = {"steps": 1, "load": saved, "resume_step": 8, "resume_to": STEPS}
    runs.append(run("load, same layout", 4, {"tensor": 2, "pipeline": 2}, **again))
    runs.append(run("load, one", 1, {}, **again))
    runs.append(run("load, data 2", 2, {"data": 2}, **again))
    runs.append(
        run(
            "load, tensor 2 x pipeline 2 x data 2",
            8,
            LAYOUTS["tensor 2 x pipeline 2 x data 2"][1],
            micro_batch_size=1,
            **again,
        )
    )
    return launch(folder, 8, runs)


def run(name, world_size, parallel, *, steps=STEPS, **more):
    return {"name": name, "world_size": world_size, "parallel": parallel, "steps": steps, **more}


def launch(folder, world_size, runs):
    (folder / "runs.json").write_text(json.dumps(runs))
    command = [sys.executable, str(PROGRAM), str(world_size), str(folder / "runs.json"), str(folder / "out.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "out.json").read_text())


def largest_difference(ours, reference):
    return max(abs(a - b) / abs(b) for a, b in zip(ours, reference, strict=True))


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("layout_runs", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plain_torch_run(program, model_keys, steps):
    """The same training in textbook torch: no engine, no process group, no sums and counts."""
    config = ModelConfig(**{**program.MODEL, **model_keys})
    model = GPT(config)
    initialise(model, config, seed=program.SEED)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=program.OPTIMIZER.learning_rate,
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    losses, norms = [], []
    for step in range(steps):
        tokens = program.tokens_of_step(step)
        logits = model(tokens[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), program.OPTIMIZER.max_gradient_norm)))
        optimizer.step()
        losses.append(loss.item())
    return losses, norms


@pytest.mark.parametrize("family", ["gpt3", "modern"])
def test_one_process_equals_textbook_torch(results, program, family):
    losses, norms = plain_torch_run(program, MODERN if family == "modern" else {}, STEPS)
    ours = results["one" if family == "gpt3" else "modern, one"]
    assert largest_difference(ours["losses"], losses) < 1e-5
    assert largest_difference(ours["norms"], norms) < 1e-4


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "one"])
def test_layout_equals_one_process(results, name):
    ours, reference = results[name], results["one"]
    assert ours["initial_weights"] == reference["initial_weights"]
    assert largest_difference(ours["losses"], reference["losses"]) < 1e-5
    assert largest_difference(ours["norms"], reference["norms"]) < 1e-4
    assert ours["evaluated_tokens"] == reference["evaluated_tokens"]
    assert math.isclose(ours["evaluated"], reference["evaluated"], rel_tol=1e-5)
    assert torch.allclose(torch.tensor(ours["logits"]), torch.tensor(reference["logits"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["tensor 2 x pipeline 2", "data 2, zero 3"])
def test_modern_architecture_equals_one_process(results, name):
    ours, reference = results[f"modern, {name}"], results["modern, one"]
    assert ours["initial_weights"] == reference["initial_weights"]
    assert largest_difference(ours["losses"], reference["losses"]) < 1e-5
    assert largest_difference(ours["norms"], reference["norms"]) < 1e-4


def test_bf16_layouts_differ_no_more_than_another_micro_batch_split_several_times(results):
    """bf16 rounds each layout's sums apart; the yardstick is what splitting the batch otherwise does on one process."""
    one = results["bf16, one"]["losses"]
    split = largest_difference(results["bf16, one, micro-batch 4"]["losses"], one)
    layout = largest_difference(results["bf16, tensor 2 x pipeline 2"]["losses"], one)
    assert layout < max(5 * split, 2e-3)


@pytest.mark.parametrize("name", ["same layout", "one", "data 2", "tensor 2 x pipeline 2 x data 2"])
def test_resuming_continues_the_curve(results, name):
    """Saved at step 8 on tensor 2 x pipeline 2; on the same layout bit for bit, on another to rounding."""
    ours = results[f"load, {name}"]
    undisturbed = results["tensor 2 x pipeline 2"]
    if name == "same layout":
        assert ours["resumed_losses"] == undisturbed["losses"][8:]
        assert ours["final_weights"] == undisturbed["final_weights"]
    assert largest_difference(ours["resumed_losses"], undisturbed["losses"][8:]) < 1e-5
    assert largest_difference(ours["resumed_norms"], undisturbed["norms"][8:]) < 1e-4


def test_weights_are_sharded(results):
    """Each rank of ZeRO-3 over 2 holds half, of tensor 2 x pipeline 2 about a quarter."""
    whole = sum(results["one"]["local_parameters"])
    assert all(abs(n / whole - 1 / 2) < 0.02 for n in results["data 2, zero 3"]["local_parameters"])
    assert all(n == whole for n in results["data 2, replicated"]["local_parameters"])
    assert all(n < 0.45 * whole for n in results["tensor 2 x pipeline 2"]["local_parameters"])
