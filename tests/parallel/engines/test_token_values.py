"""Engine.token_values on every kind of layout: what the loss sees next, bit for bit, and one process in float64.

token_value_ranks.py compares the bits, on each rank.
"""

import json
import shutil

import pytest
import torch
from layout_runs import MODEL, MODERN, SEED, SEQUENCES, batch_of_step
from token_value_ranks import MASKED_ROW, token_values_of_ranks

from gpt.losses.marks import IGNORE
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.initialisation import initialise
from gpt.training.objective import NextToken
from launch.processes.local_ranks import fork_server, run_ranks

TOLERANCE = 1e-5  # nats, in fp32
pytestmark = pytest.mark.timeout(600)
TWO_BLOCKS = {**MODERN, "n_layers": 2}
RUNS = {
    "one": (1, {}, {}),
    "bf16": (1, {"precision": "bf16", "recompute": "full"}, {}),
    "data 2, zero 0": (2, {"data": 2, "zero_stage": 0}, {}),
    "data 2, zero 1": (2, {"data": 2}, {}),
    "data 2, zero 2": (2, {"data": 2, "zero_stage": 2}, {}),
    "data 2, zero 3, recompute": (2, {"data": 2, "zero_stage": 3, "recompute": "full"}, {}),
    "tensor 2, grouped": (2, {"tensor": 2}, {"model": {**MODERN, "n_kv_heads": 1}}),
    "pipeline 2": (2, {"pipeline": 2}, {}),
    "pipeline 2, interleaved": (2, {"pipeline": 2, "schedule": "interleaved_1f1b"}, {}),
    "pipeline 2, zero bubble": (2, {"pipeline": 2, "schedule": "zbv_zero_bubble"}, {}),
    "pipeline 2, zero 3": (4, {"pipeline": 2, "data": 2, "zero_stage": 3}, {"micro_batch_size": 1}),
    "tensor 2 x pipeline 2": (4, {"tensor": 2, "pipeline": 2}, {}),
    "compiled": (1, {"compile": True}, {"model": {**MODERN, "n_layers": 1}}),
    "compiled, pipeline 2": (2, {"pipeline": 2, "compile": True, "recompute": "selective"}, {"model": TWO_BLOCKS}),
    "deepspeed, zero 1": (2, {"engine": "deepspeed", "data": 2}, {}),
    "deepspeed, zero 3": (2, {"engine": "deepspeed", "data": 2, "zero_stage": 3}, {}),
    "deepspeed, pipeline 2": (2, {"engine": "deepspeed", "pipeline": 2}, {}),
}

SLOW = ("compiled, pipeline 2",)


@pytest.fixture(scope="module")
def context():
    return fork_server(["parallel.engines.native", "launch.processes.local_ranks"])


def exact_values(model_keys):
    """Of step 0 with the initial weights, in float64 without an engine."""
    config = ModelConfig(**{**MODEL, **model_keys})
    model = GPT(config)
    initialise(model, config, seed=SEED)
    batch = batch_of_step(0, slice(None), documents=True).without_rows([MASKED_ROW])
    with torch.no_grad():
        logits = model.double()(
            batch.inputs,
            positions=batch.positions,
            mask=NextToken().attention_mask(batch).dense(SEQUENCES, batch.inputs.size(1), torch.device("cpu")),
        )
    counted = batch.loss_mask & (batch.targets != IGNORE)
    chosen = logits.log_softmax(-1).gather(-1, batch.targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return chosen.where(counted, 0.0)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.rehearse if name in SLOW else ()) for name in RUNS]
)
def test_values_equal_the_training_forward_and_one_process(name, context, tmp_path):
    world_size, parallel, more = RUNS[name]
    if "engine" in parallel:
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed; it comes with the extra 'deepspeed'")
    if parallel.get("compile") and not shutil.which("g++"):
        pytest.skip("no C++ compiler")
    run = json.dumps({"world_size": world_size, "parallel": parallel, **more})
    run_ranks(context, token_values_of_ranks, [run, str(tmp_path)], nproc=world_size, logs=tmp_path / "logs")
    first, second, *untrained = (torch.tensor(v).double() for v in json.loads((tmp_path / "values.json").read_text()))
    exact = exact_values(more.get("model", {}))
    tolerance = 0.05 if parallel.get("precision") == "bf16" else TOLERANCE
    for found in (first, *untrained):
        torch.testing.assert_close(found, exact, rtol=0, atol=tolerance)
    assert (second - first).abs().max() > tolerance, "the weights have changed"
