"""Properties of predicted steps: parts add up, more hardware helps, slow networks hurt."""

from dataclasses import replace

import pytest

from gpt.model.config import ModelConfig
from parallel.planner.hardware.tables import Cluster, read_hardware
from parallel.planner.step_time.collectives import RankGroup, all_gather_s, group
from parallel.planner.step_time.job import Job, rank_parameters
from parallel.planner.step_time.kernels import block_s, product_s
from parallel.planner.step_time.step import step_time

HARDWARE = read_hardware()
STACK = HARDWARE.stacks["triaxial"]
MODEL = ModelConfig(vocab_size=50257, n_ctx=2048, n_layers=24, d_model=2048, n_heads=16)
ONE = Job(MODEL, 2048, 2, 16, (24,))
PIPELINED = replace(ONE, tensor=2, pipeline=2, data=4, shard=4, split=(12, 12))


def cluster(gpu="H100", network="400G"):
    found = HARDWARE.networks[network]
    return Cluster(HARDWARE.gpus[gpu], found, found.node)


@pytest.mark.parametrize(
    "job",
    [
        ONE,
        PIPELINED,
        replace(PIPELINED, zero=3, recompute="full"),
        replace(PIPELINED, split=(6,) * 4, schedule="zbv_zero_bubble", v_shaped=True),
        replace(PIPELINED, precision="fp8", context=2),
    ],
)
def test_parts_add_up_to_the_step(job):
    found = step_time(job, cluster(), STACK)
    assert sum(found.parts.values()) == pytest.approx(found.seconds)
    assert all(part >= -1e-9 for part in found.parts.values())
    assert found.low < found.seconds < found.high
    assert 0.05 < found.mfu(job, cluster()) < 1


def test_the_step_moves_with_the_hardware():
    h100 = step_time(PIPELINED, cluster(), STACK)
    assert step_time(PIPELINED, cluster("A100-80G", "200G"), STACK).seconds > 1.5 * h100.seconds
    spread = replace(PIPELINED, data=32, shard=32)  # crosses nodes
    slow, fast = (step_time(spread, cluster(network=name), STACK) for name in ("OmniPath-4x100", "400G"))
    assert slow.data > 3 * fast.data
    full = step_time(replace(PIPELINED, recompute="full"), cluster(), STACK)
    assert 1.15 < full.seconds / h100.seconds < 1.35
    eager = step_time(PIPELINED, cluster(), HARDWARE.stacks["triaxial-eager"])
    assert eager.seconds > h100.seconds


def test_zero_2_moves_as_much_as_zero_1_in_a_step_of_one_micro_batch():
    wide = replace(ONE, micro_batches=1, data=64, shard=64)
    times = [step_time(replace(wide, zero=zero), cluster(), STACK).seconds for zero in (1, 2, 3)]
    assert times[1] == pytest.approx(times[0], rel=0.05)  # more and smaller messages
    assert times[2] > times[1]


def test_a_first_stage_without_blocks():
    tiny = ModelConfig(vocab_size=512, n_ctx=256, n_layers=2, d_model=32, n_heads=1)
    job = Job(tiny, 256, 1, 8, (0, 1, 1, 0), pipeline=2, schedule="zbv_zero_bubble", v_shaped=True)
    assert step_time(job, cluster(), STACK).seconds > 0


def test_short_sides_slow_products():
    ratio = product_s(4096, 4096, 4096, 1e12) / (2 * 4096**3 / 1e12)
    assert 1 < ratio < 1.2
    assert product_s(4096, 4096, 128, 1e12) / (2 * 4096**2 * 128 / 1e12) > 2


def test_collectives_follow_the_published_table():
    """NCCL all-reduce on 8 B200 (stas00/ml-engineering): bus bandwidth in GB/s by payload."""
    link = 846  # that of the table at 16 GiB
    b200 = replace(HARDWARE.gpus["B200"], link_gb_per_s=link)
    inside = Cluster(b200, HARDWARE.networks["400G"], 8)
    for mib, measured in ((1, 36), (16, 255), (64, 401), (256, 646), (1024, 723)):
        nbytes = mib * 2**20
        seconds = 2 * all_gather_s(nbytes, group(inside, 8, stride=1), inside)
        assert 2 * 7 / 8 * nbytes / seconds / 1e9 == pytest.approx(measured, rel=0.15)
    assert group(inside, 32, stride=4) == RankGroup(32, 2)
    assert all_gather_s(1e9, group(inside, 8, stride=8), inside) > 8 * all_gather_s(1e9, RankGroup(8, 8), inside)


def test_parameters_of_the_largest_rank():
    assert rank_parameters(ONE) == pytest.approx(MODEL.parameters, rel=0.01)
    assert rank_parameters(PIPELINED) < 0.3 * MODEL.parameters
    forward, backward = block_s(ONE, cluster(), STACK)
    assert backward.products == pytest.approx(2 * forward.products, rel=0.01)
