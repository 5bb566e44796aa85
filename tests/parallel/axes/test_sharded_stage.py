"""ZeRO 2 and 3 under every pipeline schedule train the model of one process.

tests/parallel/planner/test_dry_run.py compares their memory and traffic.
"""

import math

import pytest
import torch
from layout_runs import LAUNCH_TIMEOUT_S, largest_difference, launch, run_of

STEPS, SAVED_AT = 3, 1
pytestmark = pytest.mark.timeout(LAUNCH_TIMEOUT_S + 30)
GPT3 = {"n_layers": 6}
MODERN = {"n_layers": 7, "tied": False, "norm": "rmsnorm", "positions": "rope", "bias": False}
SCHEDULES = ("gpipe", "1f1b", "interleaved_1f1b", "interleaved_zero_bubble", "zbv_zero_bubble", "dualpipev")
MORE = {  # each schedule has one run with the defaults, and most have one with another setting
    ("gpipe", 2): {"offload": True},
    ("interleaved_1f1b", 2): {"recompute": "full"},
    ("dualpipev", 2): {"recompute": "selective"},
    ("1f1b", 3): {"tensor": 2, "recompute": "full"},
    ("interleaved_1f1b", 3): {"data": 4, "data_shard": 2},
    ("interleaved_zero_bubble", 3): {"stages_per_rank": 3},
    ("zbv_zero_bubble", 3): {"tensor": 2},
    ("dualpipev", 3): {"recompute": "full", "offload": True},
}
LAYOUTS = {
    f"{schedule}, ZeRO {zero}": {
        "pipeline": 2,
        "data": 2,
        "schedule": schedule,
        "zero_stage": zero,
        **MORE.get((schedule, zero), {}),
    }
    for schedule in SCHEDULES
    for zero in (2, 3)
}
SAVED = {"pipeline": 2, "data": 2, "zero_stage": 3, "schedule": "zbv_zero_bubble"}
LOADED = {"one": {}, "the same": SAVED}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded_stages")
    runs = [run("gpt3, one", {}), run("modern, one", {}, MODERN), run("bf16, one", {"precision": "bf16"})]
    runs += [run(name, parallel, count_gathered=True) for name, parallel in LAYOUTS.items()]
    runs.append(run("modern, zbv_zero_bubble, ZeRO 3", SAVED, MODERN))
    runs.append(run("bf16, ZeRO 3", {**SAVED, "precision": "bf16"}))
    saved = str(folder / "checkpoints")
    runs.append(run("save", SAVED, steps=SAVED_AT, save=saved))
    again = {"steps": 1, "load": saved, "resume_step": SAVED_AT, "resume_to": STEPS}
    runs += [run(f"load, {name}", parallel, **again) for name, parallel in LOADED.items()]
    return launch(folder, runs, timeout_s=LAUNCH_TIMEOUT_S)


def run(name, parallel, model=GPT3, *, steps=STEPS, **more):
    world_size = math.prod(parallel.get(axis, 1) for axis in ("tensor", "pipeline", "data"))
    return run_of(name, world_size, parallel, model=model, micro_batch_size=1, steps=steps, **more)


def assert_same_training(ours, reference):
    assert ours["initial_weights"] == reference["initial_weights"]
    assert largest_difference(ours["losses"], reference["losses"]) < 1e-5
    assert largest_difference(ours["norms"], reference["norms"]) < 1e-4
    assert ours["evaluated_tokens"] == reference["evaluated_tokens"]
    assert math.isclose(ours["evaluated"], reference["evaluated"], rel_tol=1e-5)
    assert torch.allclose(torch.tensor(ours["logits"]), torch.tensor(reference["logits"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_schedule_equals_one_process(results, name):
    assert_same_training(results[name], results["gpt3, one"])


def test_a_modern_decoder_equals_one_process(results):
    assert_same_training(results["modern, zbv_zero_bubble, ZeRO 3"], results["modern, one"])


def test_bf16_agrees_to_its_rounding(results):
    """Gradients of micro-batches add up in fp32 shards."""
    assert largest_difference(results["bf16, ZeRO 3"]["losses"], results["bf16, one"]["losses"]) < 2e-4


@pytest.mark.parametrize("name", LOADED)
def test_a_checkpoint_of_zero_3_loads_elsewhere(results, name):
    ours, undisturbed = results[f"load, {name}"], results["gpt3, one"]
    assert largest_difference(ours["resumed_losses"], undisturbed["losses"][SAVED_AT:]) < 1e-5
    assert largest_difference(ours["resumed_norms"], undisturbed["norms"][SAVED_AT:]) < 1e-4


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_block_stays_gathered_between_uses_under_zero_3(results, name):
    """Counted on each rank when a stage starts a forward pass, in training, evaluation and scoring."""
    gathered = results[name]["gathered_blocks"]
    assert all(gathered) if LAYOUTS[name]["zero_stage"] == 2 else not any(gathered)
