"""The gradients that an engine gives, on every kind of layout, against plain torch in float64; steps do not change."""

import json
from fnmatch import fnmatch

import numpy as np
import pytest
import torch
from gradient_ranks import EMPTY_ROWS, FROZEN, read_gradients
from layout_runs import MODEL, MODERN, SEED, SEQUENCES, tokens_of_step
from torch.nn import functional

from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from launch.processes.local_ranks import fork_server, run_ranks

TOLERANCE = 1e-5  # of a gradient's norm
FLOOR = 1e-3  # of the norm of all gradients, where that is larger: a key's bias has a gradient of 0 and some rounding
pytestmark = pytest.mark.timeout(300)
RUNS = {
    "one": (1, {}, {}),
    "data 2, zero 0": (2, {"data": 2, "zero_stage": 0}, {}),
    "data 2, zero 1": (2, {"data": 2}, {}),
    "data 2, zero 2": (2, {"data": 2, "zero_stage": 2}, {}),
    "data 2, zero 3, offload, frozen": (2, {"data": 2, "zero_stage": 3, "offload": True}, {"frozen": True}),
    "data 4, hybrid": (4, {"data": 4, "data_shard": 2, "zero_stage": 2}, {"micro_batch_size": 1}),
    "tensor 4, grouped": (4, {"tensor": 4}, {"model": {**MODERN, "bias": True}}),
    "pipeline 2, interleaved": (2, {"pipeline": 2, "schedule": "interleaved_1f1b"}, {}),
    "pipeline 2, V-shaped": (2, {"pipeline": 2, "schedule": "zbv_zero_bubble"}, {}),
    "pipeline 2, offload": (2, {"pipeline": 2, "offload": True}, {"frozen": True}),
    "pipeline 2, gpipe, untied": (2, {"pipeline": 2, "schedule": "gpipe"}, {"model": {"tied": False}}),
    "tensor 2 x pipeline 2": (4, {"tensor": 2, "pipeline": 2}, {}),
    "deepspeed, zero 1": (2, {"engine": "deepspeed", "data": 2}, {}),
    "deepspeed, zero 3, frozen": (2, {"engine": "deepspeed", "data": 2, "zero_stage": 3}, {"frozen": True}),
    "deepspeed, pipeline 2": (2, {"engine": "deepspeed", "pipeline": 2}, {}),
}


@pytest.fixture(scope="module")
def context():
    return fork_server(["parallel.engines.native", "launch.processes.local_ranks"])


def exact_gradients(model_keys, *, frozen):
    """Of the first step, in float64 without an engine."""
    config = ModelConfig(**{**MODEL, **model_keys})
    model = GPT(config)
    initialise(model, config, seed=SEED)
    model.double()
    rows = [row for row in range(SEQUENCES) if row not in EMPTY_ROWS]
    tokens = torch.cat([tokens_of_step(number)[rows] for number in (0, 100)])
    functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return {name: p.grad.numpy() for name, p in model.named_parameters() if not (frozen and fnmatch(name, FROZEN[0]))}


@pytest.mark.parametrize("name", RUNS)
def test_gradients_equal_plain_torch_and_the_step_is_the_same(name, context, tmp_path):
    world_size, parallel, more = RUNS[name]
    if "engine" in parallel:
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed; it comes with the extra 'deepspeed'")
    run = json.dumps({"world_size": world_size, "parallel": parallel, **more})
    run_ranks(context, read_gradients, [run, str(tmp_path)], nproc=world_size, logs=tmp_path / "logs")
    read, unread = json.loads((tmp_path / "result.json").read_text())
    assert read == unread, "losses, norms and weights, bit for bit"
    exact = exact_gradients(more.get("model", {}), frozen=more.get("frozen", False))
    found = np.load(tmp_path / "gradients.npz")
    assert set(found) == set(exact)
    norms = {name: np.linalg.norm(gradient) for name, gradient in exact.items()}
    floor = FLOOR * np.linalg.norm(list(norms.values()))
    differences = {name: np.linalg.norm(found[name] - exact[name]) / max(norms[name], floor) for name in exact}
    worst = max(differences, key=differences.get)
    assert differences[worst] < TOLERANCE, worst
