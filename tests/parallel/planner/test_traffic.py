"""The bytes that a dry run counts, compared with the formulas of the papers."""

import math

import pytest
from dry_runs import BOOK, FF, LAUNCH_TIMEOUT_S, LAYERS, RANKS, VOCAB, B, D, T, book_settings, run_all

from parallel.layout.config import ParallelConfig
from parallel.planner.traffic import CollectiveKind, Traffic, extrapolated

pytestmark = pytest.mark.timeout(2 * LAUNCH_TIMEOUT_S)


@pytest.fixture(scope="module")
def dry():
    """Reports by (name in BOOK, rank)."""
    return run_all({(name, rank): (book_settings(name), rank, T, None) for name in BOOK for rank in RANKS[name]})


def block_elements(tensor):
    """Parameters of a block on one tensor rank. Matrices and the biases of column-split layers are sharded; norms and
    the biases of row-split layers are whole."""
    split = 4 * D * D + 2 * D * FF + 3 * D + FF
    return split // tensor + 4 * D + 2 * D


def stage_elements(config, stage):
    """(blocks, ends): parameters of a pipeline stage on one tensor rank, over all data ranks together."""
    blocks = LAYERS // config.pipeline * block_elements(config.tensor)
    ends = 0
    if stage == 0:
        ends += VOCAB * D // config.tensor + T * D
    if stage == config.pipeline - 1:
        ends += 2 * D + (VOCAB * D // config.tensor if config.pipeline > 1 else 0)  # tied on one stage: held once
    return blocks, ends


def textbook(name, rank):
    """Bytes per step by (axis, kind), from the papers: tensor with sequence parallelism (arXiv 2205.05198, section 4.2:
    around attention and around the MLP one all-gather and one reduce-scatter forward, and their opposites backward;
    arXiv 1909.08053, section 3: one all-reduce in place of each pair),
    pipeline (one activation and one gradient across each boundary), ZeRO (arXiv 1910.02054, section 7)."""
    parallel, size, m = BOOK[name]
    config = ParallelConfig(**parallel)
    p, tp = config.pipeline, config.tensor
    data = size // (p * tp)
    shard = 1 if config.zero_stage == 0 else config.data_shard or data
    stage = rank // (tp * data)
    first, last = stage == 0, stage == p - 1
    layers, bf16, fp32 = LAYERS // p, 2, 4
    activation = B * T * D * bf16
    blocks, ends = stage_elements(config, stage)
    expected = {}
    if tp > 1:
        once = m * (4 * layers + first + last) * activation  # an end of the model: one forward, the opposite backward
        kinds = ("all-gather", "reduce-scatter") if config.sequence_parallel else ("all-reduce",)
        expected |= {("tensor", kind): once for kind in kinds}
        if not config.sequence_parallel:  # once a step, the gradients of norms, row-split biases, positions
            expected["tensor", "all-reduce"] += fp32 * (layers * 6 * D + T * D + 2 * D)
    if p > 1:
        tied = VOCAB * D // tp // shard * fp32 if first or last else 0  # its gradients, between the two ends
        expected["pipeline", "send"] = (2 - first - last) * m * activation // tp + tied
        expected["pipeline", "receive"] = expected["pipeline", "send"]
    if shard > 1:
        again = 2 if p > 1 else 1  # in a pipeline the ends are freed between forward and backward too
        gathers = m * (2 * blocks + again * ends) if config.zero_stage == 3 else blocks + ends
        reductions = m if config.zero_stage >= 2 else 1
        expected["data", "all-gather"] = gathers * bf16
        expected["data", "reduce-scatter"] = reductions * (blocks + ends) * fp32
    if data > shard:
        expected["data", "all-reduce"] = (blocks + ends) // shard * fp32
    return expected


@pytest.mark.parametrize("name", BOOK)
def test_bytes_equal_the_formulas(dry, name):
    for rank in RANKS[name]:
        report = dry[name, rank]
        found = {(key.axis, key.kind): n.bytes for key, n in report.traffic.items()}
        expected = textbook(name, rank)
        extra = found.keys() - expected.keys()
        assert extra <= {("tensor", "all-reduce"), ("all", "all-reduce"), *axis_over_all_ranks(name)}
        for key, size_bytes in expected.items():
            assert math.isclose(found[key], size_bytes, rel_tol=0.02), (rank, key)


def axis_over_all_ranks(name):
    """The axis that shares the default group, which then also carries the step's four numbers."""
    parallel, size, _ = BOOK[name]
    config = ParallelConfig(**parallel)
    sizes = {"tensor": config.tensor, "pipeline": config.pipeline, "data": config.data_shard or size}
    return {(axis, "all-reduce") for axis, n in sizes.items() if n == size}


def test_the_all_reduces_that_the_papers_leave_out(dry):
    """Once a step, tensor ranks sum the gradients of the parameters that they hold whole, of which each data rank has
    a shard, and the loss sums 3 numbers per token. All ranks sum 4 numbers per step."""
    _, size, m = BOOK["three axes"]
    whole, data = LAYERS // 4 * 6 * D, 4  # norms, and the biases of row-split layers
    expected = {0: 4 * (whole + T * D) // data, size - 1: 4 * (whole + 2 * D) // data + 12 * m * B * T}
    for rank, size_bytes in expected.items():
        traffic = dry["three axes", rank].traffic
        assert traffic[CollectiveKind("tensor", "all-reduce", 2)].bytes == size_bytes
        assert traffic[CollectiveKind("all", "all-reduce", size)] == Traffic(1, 32)


def test_extrapolation_adds_the_difference_of_two_steps():
    a, b = CollectiveKind("data", "all-gather", 2), CollectiveKind("tensor", "all-gather", 2)
    few, more = {a: Traffic(1, 8)}, {a: Traffic(1, 8), b: Traffic(1, 2)}
    assert extrapolated(few, more, 3) == {a: Traffic(1, 8), b: Traffic(4, 8)}
