"""The engine of Megatron-core against one process of the native engine, on real gloo ranks.

One launch trains all the runs. megatron_on_cpu.py answers megatron-core's CUDA calls.
"""

import math

import numpy as np
import pytest
from megatron_engine_runs import MODERN, gradients_of, launch

pytest.importorskip("megatron.core")
pytestmark = pytest.mark.timeout(1500)

MEGATRON = {"engine": "megatron"}
LAYOUTS = {  # of 20 steps
    "tensor 2": (2, {"tensor": 2}),
    "pipeline 2": (2, {"pipeline": 2}),
    "interleaved 2 x 2": (2, {"pipeline": 2, "schedule": "interleaved_1f1b"}),
    "data 2": (2, {"data": 2}),
    "tensor 2 x pipeline 2": (4, {"tensor": 2, "pipeline": 2}),
}
STEPS, FEW = 20, 3
GROUPS = [[["blocks.*.mlp.*"], 0.5, 0.3]]


def run_of(name, world_size, parallel, *, steps=FEW, **more):
    return {"name": name, "world_size": world_size, "parallel": parallel, "steps": steps, **more}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def results(folder):
    saved, native_saved = str(folder / "megatron saved"), str(folder / "native saved")
    extra = {"groups": GROUPS, "z_loss": 1e-3}
    runs = [
        run_of("native", 1, {}, steps=STEPS, generate=True, rules=True, save=native_saved),
        *[
            run_of(name, ranks, MEGATRON | parallel, steps=STEPS, generate=True, rules=True, replicas=True)
            for name, (ranks, parallel) in LAYOUTS.items()
        ],
        run_of("data 2, zero 0", 2, MEGATRON | {"data": 2, "zero_stage": 0}, replicas=True),
        run_of("data 2, whole batch", 2, MEGATRON | {"data": 2}, micro_batch_size=4),
        run_of("modern native", 1, {}, model=MODERN, **extra),
        run_of("modern tensor 2 x pipeline 2", 4, MEGATRON | {"tensor": 2, "pipeline": 2}, model=MODERN, **extra),
        run_of("modern data 2", 2, MEGATRON | {"data": 2, "recompute": "full"}, model=MODERN, **extra),
        run_of("bf16 native", 1, {"precision": "bf16"}, steps=STEPS),
        run_of("bf16 one", 1, MEGATRON | {"precision": "bf16"}, steps=STEPS),
        run_of("bf16 data 2", 2, MEGATRON | {"precision": "bf16", "data": 2}, save=str(folder / "bf16 saved")),
        run_of("saved", 4, MEGATRON | {"tensor": 2, "data": 2}, save=saved),
        run_of("native loads", 1, {}, steps=2, load=saved),
        run_of("megatron loads native", 4, MEGATRON | {"pipeline": 2, "data": 2}, steps=2, load=native_saved),
        run_of("bf16 native loads", 1, {"precision": "bf16"}, steps=2, load=str(folder / "bf16 saved")),
    ]
    return launch(folder, runs, timeout_s=1400)


def largest_difference(ours, reference):
    """Relative to the reference."""
    return max(abs(a - b) / abs(b) for a, b in zip(ours, reference, strict=False))


def assert_same_gradients(folder, name, reference):
    """Each parameter's within 1e-5, relative to its norm.

    The exact gradient of a key's bias is 0, since softmax ignores a shift of all scores: both have rounding errors,
    within 1e-9 of the norm of all gradients.
    """
    ours, expected = gradients_of(folder, name), gradients_of(folder, reference)
    assert ours.keys() == expected.keys()
    total = math.sqrt(sum(float(np.square(value, dtype=np.float64).sum()) for value in expected.values()))
    for key, value in expected.items():
        error = float(np.linalg.norm(ours[key].astype(np.float64) - value))
        assert ours[key].shape == value.shape
        if key.endswith("attention.k.bias"):
            assert error < 1e-9 * total, key
        else:
            assert error < 1e-5 * float(np.linalg.norm(value)), key


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_equals_one_native_process(results, folder, name):
    """Tied, accumulated, clipped in step 1, with weight decay, and with other numbers of targets on each data rank."""
    ours, reference = results[name], results["native"]
    assert reference["norms"][0] > 2 * 0.5, "clipping must be active"
    assert ours["initial_weights"] == reference["initial_weights"]
    assert len(ours["losses"]) == STEPS
    assert largest_difference(ours["losses"][:1], reference["losses"][:1]) < 1e-6
    assert largest_difference(ours["norms"][:1], reference["norms"][:1]) < 1e-5
    assert largest_difference(ours["losses"], reference["losses"]) < 1e-5
    assert largest_difference(ours["norms"], reference["norms"]) < 1e-4
    assert_same_gradients(folder, name, "native")
    assert ours["evaluated"][1] == reference["evaluated"][1]
    assert largest_difference(ours["evaluated"][:1], reference["evaluated"][:1]) < 1e-5


@pytest.mark.parametrize("name", LAYOUTS)
def test_token_values_equal_one_native_process(results, name):
    """Log-probabilities by the forward code of training; rank 0 has the first rows."""
    ours, reference = (np.array(results[run]["token_values"]) for run in (name, "native"))
    assert (reference == 0).sum() == 3 * 11, "targets that are ignored"
    assert np.allclose(ours, reference[: len(ours)], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", LAYOUTS)
def test_inference_equals_one_native_process(results, name):
    ours, reference = results[name], results["native"]
    assert np.allclose(ours["logits"], reference["logits"], rtol=1e-4, atol=1e-6)
    for (tokens, log_probs), (expected, expected_log_probs) in zip(
        ours["generated"], reference["generated"], strict=True
    ):
        assert tokens == expected
        assert np.allclose(log_probs, expected_log_probs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LAYOUTS)
def test_steps_that_must_not_update_are_those_of_the_native_engine(results, name):
    ours, reference = results[name]["rules"], results["native"]["rules"]
    assert ours["unchanged"]
    for step in ("discarded", "empty"):
        skipped, discarded, flags, tokens = ours[step]
        assert [skipped, discarded, tokens] == [*reference[step][:2], reference[step][3]]
        assert flags == [True, False], "rank 1 raised the first"
    assert ours["twice"][0] == reference["twice"][0]
    assert math.isclose(ours["twice"][1], reference["twice"][1], rel_tol=1e-5)


@pytest.mark.parametrize("name", [*LAYOUTS, "data 2, zero 0"])
def test_replicas_are_compared(results, name):
    """A change to rank 0's token embedding shows where another rank has a copy: tied ends, or data ranks."""
    before, after = results[name]["replicas"]
    assert before is None
    if name == "tensor 2":
        assert after is None, "each tensor rank has rows of its own"
    else:
        assert after is not None
        assert after.startswith("the replicas of model.embed.tokens.weight on rank 0")


@pytest.mark.parametrize("name", ["data 2, zero 0", "data 2, whole batch"])
def test_other_settings_change_nothing(results, folder, name):
    ours, reference = results[name], results["native"]
    assert largest_difference(ours["losses"], reference["losses"]) < 1e-5
    assert largest_difference(ours["norms"], reference["norms"]) < 1e-5
    assert_same_gradients(folder, name, "native")


@pytest.mark.parametrize("name", ["modern tensor 2 x pipeline 2", "modern data 2"])
def test_modern_switches_equal_one_native_process(results, folder, name):
    """RMSNorm, RoPE, SwiGLU, grouped queries, untied, no bias; with parameter groups, z-loss, and recomputation."""
    ours, reference = results[name], results["modern native"]
    assert ours["initial_weights"] == reference["initial_weights"]
    assert largest_difference(ours["losses"], reference["losses"]) < 1e-5
    assert largest_difference(ours["norms"], reference["norms"]) < 1e-5
    z_losses = [[metrics["z_loss"] for metrics in result["metrics"]] for result in (ours, reference)]
    assert largest_difference(*z_losses) < 1e-5
    assert_same_gradients(folder, name, "modern native")


def test_bf16_is_as_near_to_fp32_as_the_native_engine(results):
    exact = results["native"]["losses"]
    native, ours = (largest_difference(results[name]["losses"], exact) for name in ("bf16 native", "bf16 one"))
    print(f"largest relative loss difference from fp32: native bf16 {native:.1e}, megatron bf16 {ours:.1e}")
    assert ours < 1.5 * native
    assert results["bf16 one"]["initial_weights"] == results["native"]["initial_weights"]


@pytest.mark.parametrize("name", ["saved", "bf16 data 2"])
def test_both_stores_restore_the_same_state(results, name):
    """Saved in the background; bit for bit."""
    ours = results[name]
    assert ours["save_errors"] == [None, None]
    for store in ("shared", "local"):
        assert ours[f"{store}_digest_equal"]
        assert ours[f"{store}_again"] == ours["continued"]


@pytest.mark.parametrize(
    ("saved", "loaded", "tolerance"),
    [
        ("saved", "native loads", 1e-6),
        ("native", "megatron loads native", 1e-6),
        ("bf16 data 2", "bf16 native loads", 1e-3),
    ],
)
def test_a_run_can_change_engine_and_layout(results, saved, loaded, tolerance):
    """The losses of the next two steps are those of the engine that saved."""
    ours, reference = results[loaded], results[saved]["continued"]
    assert largest_difference(ours["losses"], reference["losses"]) < tolerance
    assert largest_difference(ours["norms"], reference["norms"]) < 10 * tolerance
