"""The memory formula against the dry run, which runs the real code on fake tensors."""

import dataclasses

import pytest
from dry_runs import LAUNCH_TIMEOUT_S, run_all

from gpt.model.config import ModelConfig
from gpt.training.optimizer import OptimizerConfig
from parallel.engines.settings import EngineSettings
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout
from parallel.planner.choice.candidates import PlanRequest, job_of
from parallel.planner.choice.footprint import footprint, in_flight, kept_per_token
from parallel.planner.hardware.tables import Cluster, read_hardware

pytestmark = pytest.mark.timeout(LAUNCH_TIMEOUT_S)
CPU_LOGITS_BYTES = 64 * 2**20
SMALL = ModelConfig(vocab_size=2048, n_ctx=512, n_layers=16, d_model=512, n_heads=8)
MODERN = ModelConfig(
    vocab_size=2048, n_ctx=512, n_layers=8, d_model=512, n_heads=8, n_kv_heads=2, d_ff=1408,
    positions="rope", norm="rmsnorm", activation="swiglu", bias=False, tied=False,
)  # fmt: skip
WIDE = dataclasses.replace(SMALL, n_layers=4, d_model=4096, n_heads=32, n_ctx=2048, vocab_size=50257)
# Name: (model, [parallel], GPUs, micro-batch size, micro-batches). The fullest rank is measured.
LAYOUTS = {
    "one": (SMALL, {}, 1, 2, 2),
    "full": (SMALL, {"recompute": "full"}, 1, 4, 2),
    "tensor, selective": (SMALL, {"tensor": 2, "recompute": "selective"}, 2, 2, 2),
    "tensor, selective, whole sequences": (
        SMALL,
        {"tensor": 2, "recompute": "selective", "sequence_parallel": False},
        2,
        2,
        2,
    ),
    "modern, tensor, whole sequences": (MODERN, {"tensor": 2, "sequence_parallel": False}, 2, 2, 2),
    "modern": (MODERN, {}, 1, 2, 2),
    "zero 3": (SMALL, {"zero_stage": 3}, 4, 2, 2),
    "1f1b, zero 2": (SMALL, {"pipeline": 4, "zero_stage": 2}, 16, 2, 8),
    "gpipe": (SMALL, {"pipeline": 4, "schedule": "gpipe"}, 4, 2, 8),
    "interleaved": (SMALL, {"pipeline": 4, "schedule": "interleaved_1f1b"}, 4, 2, 8),
    "zero bubble": (SMALL, {"pipeline": 4, "schedule": "interleaved_zero_bubble"}, 4, 2, 8),
    "v": (SMALL, {"pipeline": 4, "schedule": "dualpipev"}, 4, 2, 8),
    "wide": (WIDE, {"tensor": 8, "data": 8}, 64, 1, 4),
}


def job_of_case(name):
    """The job of a layout, and the settings of its engine."""
    model, keys, gpus, size, count = LAYOUTS[name]
    parallel = ParallelConfig(**keys)
    data = gpus // (parallel.tensor * parallel.pipeline)
    batch = BatchConfig(size, size * model.n_ctx * data * count)
    layout = resolve_layout(parallel, batch, model=model, seq_len=model.n_ctx, world_size=gpus)
    hardware = read_hardware()
    cluster = Cluster(hardware.gpus["H100"], hardware.networks["400G"], 8)
    request = PlanRequest(model, batch, model.n_ctx, parallel, cluster, hardware.stacks["triaxial"])
    settings = EngineSettings(model, parallel, layout, OptimizerConfig(learning_rate=1e-3), size, seed=1)
    return job_of(request, parallel, layout, size), settings


def case(name):
    """The expected footprint of a layout, and the dry run of its fullest rank."""
    job, settings = job_of_case(name)
    expected = footprint(job, logits_bytes=CPU_LOGITS_BYTES)
    return expected, (settings, expected.rank * job.tensor * job.data, job.seq_len, None)


@pytest.fixture(scope="module")
def reports():
    return run_all({name: case(name)[1] for name in LAYOUTS})


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_formula_agrees_with_the_dry_run(reports, name):
    expected, _ = case(name)
    assert expected.peak == pytest.approx(reports[name].peak_bytes, rel=0.03)
    assert expected.weights == pytest.approx(reports[name].parameter_bytes, rel=0.03)
    assert expected.optimizer == pytest.approx(reports[name].optimizer_bytes, rel=0.03)


def test_micro_batches_in_flight():
    assert [each.blocks for each in in_flight("1f1b", 4, 8, (2,) * 4)] == [8, 6, 4, 2]
    assert [each.blocks for each in in_flight("gpipe", 4, 8, (2,) * 4)] == [16] * 4
    whole = in_flight("dualpipev", 4, 8, (2,) * 8, whole_backward=True)
    assert all(each.halves == 0 for each in whole)


def test_recomputation_keeps_less():
    job = job_of_case("one")[0]
    kept = [kept_per_token(job, recompute=way) for way in ("none", "elementwise", "full")]
    assert kept == [32 * 512 + 4 * 8 + 16, 20 * 512 + 4 * 8, 2 * 512]
