"""Every pipeline schedule trains the model of one process, on stages of unequal size, tied or not; and keeps the
activations of as many micro-batches as it should."""

import math

import pytest
import torch
from layout_runs import LAUNCH_TIMEOUT_S, STEPS, largest_difference, launch, run_of

SAVED_AT = STEPS - 2
pytestmark = pytest.mark.timeout(LAUNCH_TIMEOUT_S + 30)
TIED = {"n_layers": 6}
UNTIED = {"n_layers": 7, "tied": False, "norm": "rmsnorm", "positions": "rope", "bias": False}
LAYOUTS = {  # tied models of 6 layers on 2 ranks, untied ones of 7 on 4
    "gpipe, split given": (2, TIED, {"pipeline": 2, "schedule": "gpipe", "split": [1, 5]}),
    "1f1b, head alone": (2, TIED, {"pipeline": 2, "split": [6, 0]}),
    "interleaved_1f1b, tensor, recompute": (
        4,
        TIED,
        {"pipeline": 2, "tensor": 2, "schedule": "interleaved_1f1b", "recompute": "full"},
    ),
    "interleaved_zero_bubble, replicated": (
        4,
        TIED,
        {"pipeline": 2, "data": 2, "zero_stage": 0, "schedule": "interleaved_zero_bubble"},
    ),
    "zbv_zero_bubble, tensor, data": (8, TIED, {"pipeline": 2, "tensor": 2, "data": 2, "schedule": "zbv_zero_bubble"}),
    "dualpipev, data, recompute": (4, TIED, {"pipeline": 2, "data": 2, "schedule": "dualpipev", "recompute": "full"}),
    "1f1b on 4": (4, UNTIED, {"pipeline": 4}),
    "interleaved_1f1b on 4": (4, UNTIED, {"pipeline": 4, "schedule": "interleaved_1f1b"}),
    "interleaved_zero_bubble on 4": (4, UNTIED, {"pipeline": 4, "schedule": "interleaved_zero_bubble"}),
    "zbv_zero_bubble on 4": (4, UNTIED, {"pipeline": 4, "schedule": "zbv_zero_bubble"}),
    "dualpipev on 4, selective": (4, UNTIED, {"pipeline": 4, "schedule": "dualpipev", "recompute": "selective"}),
}
# runs in which the activations are counted: of GPipe and DualPipeV without recomputation, a step each
LIVE = {
    "gpipe": "live, gpipe",
    "dualpipev": "live, dualpipev",
    **{name.removesuffix(" on 4"): name for name in LAYOUTS if name.endswith(" on 4")},
}
LOADED = {  # saved as a V of 4 stages, whose ends are copies of one weight on one rank
    "one": (1, {}),
    "the same": (2, {"pipeline": 2, "schedule": "zbv_zero_bubble"}),
    "rounds of 6": (2, {"pipeline": 2, "schedule": "interleaved_1f1b", "stages_per_rank": 3}),
    "another V": (4, {"pipeline": 4, "schedule": "dualpipev", "split": [0, 1, 1, 1, 1, 1, 1, 0]}),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("schedules")
    runs = [run("tied, one", 1, TIED, {}), run("untied, one", 1, UNTIED, {})]
    live = {"count_live": True}
    runs += [run(name, *layout, **live if name in LIVE.values() else {}) for name, layout in LAYOUTS.items()]
    for name in ("gpipe", "dualpipev"):
        runs.append(run(LIVE[name], 4, UNTIED, {"pipeline": 4, "schedule": name}, steps=1, **live))
    runs.append(run("bf16, one", 1, TIED, {"precision": "bf16"}))
    runs.append(run("bf16, zbv_zero_bubble", 2, TIED, {**LOADED["the same"][1], "precision": "bf16"}))
    saved = str(folder / "checkpoints")
    runs.append(run("save", 2, TIED, LOADED["the same"][1], steps=SAVED_AT, save=saved))
    for name, (world_size, parallel) in LOADED.items():
        again = {"steps": 1, "load": saved, "resume_step": SAVED_AT, "resume_to": STEPS}
        runs.append(run(f"load, {name}", world_size, TIED, parallel, **again))
    return launch(folder, runs, timeout_s=LAUNCH_TIMEOUT_S)


def run(name, world_size, model, parallel, *, steps=STEPS, **more):
    """8 micro-batches a step for each of the pipelines, 4 where there are two."""
    return run_of(name, world_size, parallel, model=model, micro_batch_size=1, steps=steps, **more)


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_schedule_equals_one_process(results, name):
    ours = results[name]
    reference = results["tied, one" if LAYOUTS[name][1] is TIED else "untied, one"]
    assert ours["initial_weights"] == reference["initial_weights"]
    assert largest_difference(ours["losses"], reference["losses"]) < 1e-5
    assert largest_difference(ours["norms"], reference["norms"]) < 1e-4
    assert ours["evaluated_tokens"] == reference["evaluated_tokens"]
    assert math.isclose(ours["evaluated"], reference["evaluated"], rel_tol=1e-5)
    assert torch.allclose(torch.tensor(ours["logits"]), torch.tensor(reference["logits"]), rtol=1e-4, atol=1e-5)


def test_a_split_backward_in_bf16_agrees_to_its_rounding(results):
    assert largest_difference(results["bf16, zbv_zero_bubble"]["losses"], results["bf16, one"]["losses"]) < 2e-4


@pytest.mark.parametrize("name", list(LOADED))
def test_a_checkpoint_loads_under_any_schedule_and_split(results, name):
    ours, undisturbed = results[f"load, {name}"], results["tied, one"]
    assert largest_difference(ours["resumed_losses"], undisturbed["losses"][SAVED_AT:]) < 1e-5
    assert largest_difference(ours["resumed_norms"], undisturbed["norms"][SAVED_AT:]) < 1e-4


def test_activations_kept_at_once(results):
    """8 micro-batches on 4 ranks; counted in stages, of which each rank has 1 under GPipe and 1F1B, else 2."""
    live = {schedule: results[name]["live"] for schedule, name in LIVE.items()}
    assert {schedule: found["left"] for schedule, found in live.items()} == dict.fromkeys(live, 0)
    assert live["gpipe"]["by_rank"] == [8, 8, 8, 8]
    assert live["1f1b"]["by_rank"] == [min(4 - rank, 8) for rank in range(4)]
    assert live["interleaved_1f1b"]["by_rank"] == [4 + 2 * (3 - rank) + 1 for rank in range(4)]
    assert live["interleaved_zero_bubble"]["by_rank"] == [8, 8, 8, 8]
    assert live["zbv_zero_bubble"]["by_rank"] == [8, 8, 8, 8]
    assert live["dualpipev"]["by_rank"] == [9, 9, 9, 9]
