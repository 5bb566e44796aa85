"""The DeepSpeed engine on several ranks, against the native engine on one process: losses, norms, every gradient,
evaluation, texts, checkpoints in both directions, and steps that update nothing."""

import json

import numpy as np
import pytest
from deepspeed_ranks import SAVED_AT, STEPS, train_cases
from layout_runs import MODERN, largest_difference

from launch.processes.local_ranks import fork_server, run_ranks

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed; it comes with the extra 'deepspeed'")
pytestmark = pytest.mark.timeout(900)
TOLERANCE = 1e-5
FLOOR = 1e-3  # of the norm of all gradients: the gradient of a key's bias is rounding alone
SGD = {"kind": "sgd", "frozen": ["embed.*", "blocks.1.*"]}
UNTIED = {"model": MODERN, "documents": True, "uneven": False, "optimizer": SGD}
GRADIENTS = {"checks": ["gradients"]}


def case(name, world_size, parallel, **more):
    steps = 8 if parallel.get("precision") == "bf16" else STEPS
    return {"name": name, "world_size": world_size, "parallel": parallel, "steps": steps, **more}


def deepspeed(stage, data=2, **more):
    return {"engine": "deepspeed", "data": data, "zero_stage": stage, **more}


ONE = [
    case("one", 1, {}, save="saved by native", **GRADIENTS),
    case("one, untied", 1, {}, **UNTIED, **GRADIENTS),
    case("one, bf16", 1, {"precision": "bf16"}),
]
TWO = [
    case("zero 1", 2, deepspeed(1), save="saved by zero 1", checks=["gradients", "discards"]),
    case("zero 2", 2, deepspeed(2), save="saved by zero 2", checks=["gradients", "discards"]),
    case("zero 3", 2, deepspeed(3), save="saved by zero 3", checks=["gradients", "discards"]),
    case("zero 1, one micro-batch", 2, deepspeed(1), micro_batch_size=4),
    case("zero 2, offload", 2, deepspeed(2, offload=True), checks=["gradients", "discards"]),
    case("zero 3, offload, recompute", 2, deepspeed(3, offload=True, recompute="full"), checks=["discards"]),
    case("zero 3, untied", 2, deepspeed(3), **UNTIED, checks=["gradients", "background"]),
    case("zero 1, bf16", 2, deepspeed(1, precision="bf16"), checks=["discards", "background"]),
    case("zero 2, bf16", 2, deepspeed(2, precision="bf16")),
    case("zero 3, bf16, offload", 2, deepspeed(3, precision="bf16", offload=True), checks=["background"]),
    case("zero 2 after native", 2, deepspeed(2), load="saved by native"),
    case("zero 3 after native", 2, deepspeed(3), load="saved by native"),
    case("zero 3 only evaluates", 2, deepspeed(3, offload=True), only_evaluates=True),
    case("zero 1 only evaluates", 2, deepspeed(1), only_evaluates=True),
]
FOUR = [
    case("zero 3, data 4", 4, deepspeed(3, data=4), micro_batch_size=1, checks=["gradients"]),
    case("pipeline", 4, deepspeed(1, pipeline=2), save="saved by pipeline", checks=["gradients", "discards"]),
    case("pipeline, bf16", 4, deepspeed(1, pipeline=2, precision="bf16"), checks=["discards", "background"]),
    case("pipeline after native", 4, deepspeed(1, pipeline=2), load="saved by native"),
]
EIGHT = [case("pipeline, data 4", 8, deepspeed(1, data=4, pipeline=2), micro_batch_size=1)]
INTERLEAVED = {"pipeline": 2, "schedule": "interleaved_1f1b", "recompute": "full"}
TWO.append(case("interleaved", 2, deepspeed(1, data=1, **INTERLEAVED), checks=["gradients"]))
SAVED = ("zero 1", "zero 2", "zero 3", "pipeline")
AFTER = [case(f"native after {name}", 1, {}, load=f"saved by {name}") for name in SAVED] + [
    case("one only evaluates", 1, {}, only_evaluates=True)
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deepspeed")
    modules = ["deepspeed", "parallel.engines.deepspeed", "parallel.engines.native", "launch.processes.local_ranks"]
    context = fork_server(modules)
    found = {}
    for number, cases in enumerate((ONE, TWO, FOUR, EIGHT, AFTER)):
        arguments, nproc = [json.dumps(cases), str(folder)], cases[0]["world_size"]
        run_ranks(context, train_cases, arguments, nproc=nproc, logs=folder / f"logs{number}")
        for each in cases:
            result = json.loads((folder / f"{each['name']}.json").read_text())
            gradients = folder / f"{each['name']}.npz"
            found[each["name"]] = result | ({"gradients": dict(np.load(gradients))} if gradients.exists() else {})
    return found


CHECKS = {each["name"]: each.get("checks", []) for each in (*ONE, *TWO, *FOUR, *EIGHT)}


def losses(result):
    return [loss for loss, _ in result["figures"]]


def norms(result):
    return [norm for _, norm in result["figures"]]


FP32 = [
    ("zero 1", "one"),
    ("zero 2", "one"),
    ("zero 3", "one"),
    ("zero 1, one micro-batch", "one"),
    ("zero 2, offload", "one"),
    ("zero 3, offload, recompute", "one"),
    ("zero 3, data 4", "one"),
    ("zero 3, untied", "one, untied"),
    ("pipeline", "one"),
    ("pipeline, data 4", "one"),
    ("interleaved", "one"),
]


@pytest.mark.parametrize(("name", "reference"), FP32)
def test_twenty_steps_equal_one_native_process(results, name, reference):
    ours, theirs = results[name], results[reference]
    assert ours["initial"] == theirs["initial"], "the weights of the seed, bit for bit"
    assert largest_difference(losses(ours), losses(theirs)) < TOLERANCE
    assert largest_difference(norms(ours), norms(theirs)) < TOLERANCE
    assert largest_difference([ours["evaluated"]], [theirs["evaluated"]]) < TOLERANCE
    assert np.allclose(ours["logits"], theirs["logits"], rtol=1e-4, atol=1e-5)
    assert ours["greedy"] == theirs["greedy"]


@pytest.mark.parametrize(("name", "reference"), [pair for pair in FP32 if "gradients" in CHECKS[pair[0]]])
def test_every_gradient_equals_one_native_process(results, name, reference):
    ours, theirs = results[name]["gradients"], results[reference]["gradients"]
    assert set(ours) == set(theirs)
    size = {key: np.linalg.norm(gradient) for key, gradient in theirs.items()}
    floor = FLOOR * np.linalg.norm(list(size.values()))
    differences = {key: np.linalg.norm(ours[key] - theirs[key]) / max(size[key], floor) for key in theirs}
    worst = max(differences, key=differences.get)
    assert differences[worst] < TOLERANCE, worst


def test_clipping_is_active_and_weight_decay_is_on(results):
    """Else AdamW would hide a gradient of another scale."""
    assert max(norms(results["one"])) > 0.5
    assert max(norms(results["one, untied"])) > 0.5


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("zero 1, bf16", 1.01),
        ("zero 2, bf16", 1.01),
        ("zero 3, bf16, offload", 1.01),
        ("pipeline, bf16", 2),  # as for the native engine's pipelines: the two parts of a tied gradient round alone
    ],
)
def test_bf16_is_as_near_to_fp32_as_one_native_process(results, name, factor):
    ours, native = (losses(results[key]) for key in (name, "one, bf16"))
    exact = losses(results["one"])[: len(ours)]
    assert results[name]["initial"] == results["one"]["initial"], "master weights are not rounded"
    assert largest_difference(ours, exact) <= factor * largest_difference(native, exact)
    assert largest_difference(ours, native) < 1e-3


@pytest.mark.parametrize("name", ["zero 2 after native", "zero 3 after native", "pipeline after native"])
def test_a_native_run_goes_on_in_deepspeed(results, name):
    ours, native = results[name], results["one"]
    assert ours["loaded"] == native["at_save"]
    expected = native["figures"][SAVED_AT : SAVED_AT + 3]
    assert largest_difference(losses(ours), [loss for loss, _ in expected]) < 1e-6
    assert largest_difference(norms(ours), [norm for _, norm in expected]) < TOLERANCE


@pytest.mark.parametrize("name", SAVED)
def test_a_deepspeed_run_goes_on_in_the_native_engine(results, name):
    ours, before = results[f"native after {name}"], results[name]
    assert ours["loaded"] == before["at_save"]
    expected = before["figures"][SAVED_AT : SAVED_AT + 3]
    assert largest_difference(losses(ours), [loss for loss, _ in expected]) < 1e-6
    assert largest_difference(norms(ours), [norm for _, norm in expected]) < TOLERANCE


@pytest.mark.parametrize("stage", [1, 3])
def test_an_engine_without_an_optimizer_evaluates(results, stage):
    ours, native = results[f"zero {stage} only evaluates"], results["one only evaluates"]
    assert ours["initial"] == native["initial"]
    assert np.allclose(ours["logits"], native["logits"], rtol=1e-4, atol=1e-5)


def test_replicas_and_values_of_all_ranks(results):
    for each in TWO[:3]:
        assert results[each["name"]]["replicas"] is None
        assert results[each["name"]]["everyone"] == [[0], [1]]


def test_tied_copies_stay_equal_with_any_number_of_data_ranks(results):
    """More than two numbers have another sum in another order, and data ranks add up in one order per stage."""
    assert results["pipeline, data 4"]["replicas"] is None


def test_zero_3_holds_its_part_of_the_weights(results):
    """Vectors stay whole on every rank, and are a small part of the model."""
    whole = results["zero 1"]["held"]
    assert results["zero 2"]["held"] == whole
    assert results["zero 3"]["held"] < 0.6 * whole
    assert results["zero 3, data 4"]["held"] < 0.4 * whole
