"""The dry run against real processes, exactly, and against the textbook's formulas; memory against known tensors."""

import dataclasses
import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import layout_runs
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gpt.losses.next_token import loss_for
from gpt.model.config import ModelConfig
from gpt.training.optimizer import OptimizerConfig
from parallel.engines.settings import EngineSettings
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout
from parallel.planner.dry_run import measure_rank, micro_batches_to_run
from parallel.planner.memory import MemoryTracker, tracking
from parallel.planner.traffic import Collective, Traffic, extended

LAUNCH_TIMEOUT_S = 600  # of the real processes, and again of the dry runs; a hung collective ends itself after 90 s
pytestmark = pytest.mark.timeout(2 * LAUNCH_TIMEOUT_S)
# On real processes and in the dry run: name: (processes, parallel, micro-batch size)
REAL = {
    "one": (1, {}, 2),
    "tensor": (2, {"tensor": 2}, 2),
    "1f1b": (2, {"pipeline": 2}, 2),
    "zero 3": (4, {"data": 4, "zero_stage": 3}, 1),
    "hybrid, tensor": (8, {"tensor": 2, "data": 4, "data_shard": 2}, 1),
    "all axes": (8, {"tensor": 2, "pipeline": 2, "data": 2}, 1),
    "v": (4, {"tensor": 2, "pipeline": 2, "schedule": "zbv_zero_bubble"}, 1),
    "gpipe": (4, {"tensor": 2, "pipeline": 2, "schedule": "gpipe", "recompute": "full", "precision": "bf16"}, 2),
}
# Their peaks too, followed operator by operator. How many messages a real process may hold while they are under way,
# which they never are in the dry run.
PEAKS = {"one": 0, "tensor": 0, "1f1b": 1}
# A step of so many micro-batches whole, and extended from two shorter ones
EXTENDED = {"gpipe": 7, "interleaved_1f1b": 12, "zbv_zero_bubble": 12, "dualpipev": 12}
# Against formulas: name: (parallel, processes, micro-batches), of a model whose sizes every layout divides
B, T, D, LAYERS, VOCAB, FF = 2, 32, 64, 4, 256, 256
BOOK = {
    "tensor": ({"tensor": 4}, 4, 2),
    "zero 0": ({"zero_stage": 0}, 4, 2),
    "zero 1": ({"zero_stage": 1}, 4, 2),
    "zero 2": ({"zero_stage": 2}, 4, 2),
    "zero 3": ({"zero_stage": 3}, 4, 3),
    "hybrid": ({"zero_stage": 3, "data_shard": 4}, 8, 2),
    "three axes": ({"tensor": 2, "pipeline": 4, "split": (1, 1, 1, 1)}, 32, 5),
}
# A rank of the first stage, of one in the middle, of the last; where there is one stage, ranks do the same.
RANKS = {name: (0, 17, 31) if name == "three axes" else (0,) for name in BOOK}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Per layout and rank, what a real process held and sent."""
    folder = tmp_path_factory.mktemp("counted")
    runs = [
        {
            "name": name,
            "world_size": size,
            "parallel": parallel,
            "micro_batch_size": micro,
            "count": True,
            "peak": name in PEAKS,
        }
        for name, (size, parallel, micro) in REAL.items()
    ]
    return layout_runs.launch(folder, runs, timeout_s=LAUNCH_TIMEOUT_S)


@pytest.fixture(scope="module")
def dry():
    """Reports of the dry run by (layout, rank): of the first and the last real rank, and of some for the formulas."""
    jobs = {}
    for name, (size, parallel, micro) in REAL.items():
        run = {"world_size": size, "parallel": parallel, "micro_batch_size": micro}
        for rank in {0, size - 1}:
            jobs[name, rank] = (layout_runs.settings_of(run), rank, layout_runs.SEQ_LEN, None)
    for name in BOOK:
        for rank in RANKS[name]:
            jobs[f"book, {name}", rank] = (book_settings(name), rank, T, None)
    many = book_settings("three axes", micro_batches=9)
    for rank in (0, 31):
        jobs["whole", rank] = (many, rank, T, (9,))
        jobs["extended", rank] = (many, rank, T, (5, 6))
    for schedule, count in EXTENDED.items():
        for runs in ((count,), few_of(schedule)):
            jobs[schedule, len(runs)] = (scheduled(schedule, micro_batches=count), 0, T, runs)
    jobs["wide vocabulary", 0] = (wide_vocabulary(), 0, T, None)
    context = get_context("forkserver")
    context.set_forkserver_preload(["parallel.planner.dry_run"])
    with ProcessPoolExecutor(2, mp_context=context, max_tasks_per_child=1) as pool:
        work = {
            key: pool.submit(measure_rank, settings, rank=rank, seq_len=length, loss=loss_for(compile=False), runs=runs)
            for key, (settings, rank, length, runs) in jobs.items()
        }
        return {key: job.result(timeout=LAUNCH_TIMEOUT_S) for key, job in work.items()}


def book_settings(name, *, micro_batches=None):
    parallel, size, usual = BOOK[name]
    config = ParallelConfig(**parallel)
    model = ModelConfig(VOCAB, T, LAYERS, D, n_heads=8)
    data = size // (config.tensor * config.pipeline)
    batch = BatchConfig(B, B * T * data * (micro_batches or usual))
    layout = resolve_layout(config, batch, model=model, seq_len=T, world_size=size)
    return EngineSettings(model, config, layout, OptimizerConfig(learning_rate=1e-3), B, seed=1)


def scheduled(schedule, *, micro_batches):
    """A pipeline of 2 with 2 data ranks."""
    config = ParallelConfig(pipeline=2, schedule=schedule)
    model = ModelConfig(VOCAB, T, 2 * LAYERS, D, n_heads=8)
    batch = BatchConfig(B, B * T * 2 * micro_batches)
    layout = resolve_layout(config, batch, model=model, seq_len=T, world_size=4)
    return EngineSettings(model, config, layout, OptimizerConfig(learning_rate=1e-3), B, seed=1)


def few_of(schedule):
    """The two numbers of micro-batches that a long step of this schedule is found from."""
    return micro_batches_to_run(scheduled(schedule, micro_batches=200))


def wide_vocabulary():
    """Of 8,192 rows, 2,048 on a tensor rank."""
    usual = book_settings("three axes")
    return dataclasses.replace(
        usual,
        model=dataclasses.replace(usual.model, vocab_size=8192),
        parallel=dataclasses.replace(usual.parallel, tensor=4),
        layout=dataclasses.replace(usual.layout, tensor=4, data=2, data_shard=2),
    )


@pytest.mark.parametrize("name", REAL)
def test_the_dry_run_equals_real_processes(real, dry, name):
    for rank in {0, len(real[name]) - 1}:
        report, found = dry[name, rank], real[name][rank]
        assert {key: getattr(report, key) for key in found["held"]} == found["held"]
        traffic = [[key.axis, key.kind, key.ranks, n.count, n.bytes] for key, n in report.traffic.items()]
        assert traffic == found["traffic"]


@pytest.mark.parametrize("name", PEAKS)
def test_peaks_of_the_dry_run_equal_those_of_real_tensors(real, dry, name):
    """To the byte; but a pipeline's rank also holds a message until it has arrived, and the vote on its shape."""
    micro = REAL[name][2]
    message = micro * layout_runs.SEQ_LEN * layout_runs.MODEL["d_model"] * 4
    slack = PEAKS[name] * (message + 8)
    for rank in {0, len(real[name]) - 1}:
        report, found = dry[name, rank], real[name][rank]["peak"]
        assert 0 <= found["activations"] - report.peak_activation_bytes <= slack
        assert 0 <= found["all"] - report.peak_bytes <= slack


def test_zero_3_keeps_a_quarter_of_everything(real):
    def held(rank):
        return sum(rank["held"][key] for key in ("parameter_bytes", "gradient_bytes", "optimizer_bytes"))

    (whole,) = real["one"]
    for rank in real["zero 3"]:
        assert math.isclose(held(rank), held(whole) / 4, rel_tol=0.05)


def block_elements(tensor):
    """Parameters of a block on one tensor rank: matrices and the biases of what is split by columns are shared out;
    norms and the biases of what is split by rows are whole."""
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
    """Bytes a step by (axis, kind), from papers alone: tensor with sequence parallelism (arXiv 2205.05198, section 4.2:
    around attention and around the MLP one all-gather and one reduce-scatter forward, and their opposites backward),
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
        expected["tensor", "all-gather"] = expected["tensor", "reduce-scatter"] = once
    if p > 1:
        tied = VOCAB * D // tp // shard * fp32 if first or last else 0  # its gradients, between the two ends
        expected["pipeline", "send"] = (2 - first - last) * m * activation // tp + tied
        expected["pipeline", "receive"] = expected["pipeline", "send"]
    if shard > 1:
        gathers = m * (2 * blocks + ends) if config.zero_stage == 3 else blocks + ends
        reductions = m if config.zero_stage >= 2 else 1
        expected["data", "all-gather"] = gathers * bf16
        expected["data", "reduce-scatter"] = reductions * (blocks + ends) * fp32
    if data > shard:
        expected["data", "all-reduce"] = (blocks + ends) // shard * fp32
    return expected


@pytest.mark.parametrize("name", BOOK)
def test_bytes_equal_the_textbook(dry, name):
    for rank in RANKS[name]:
        report = dry[f"book, {name}", rank]
        found = {(key.axis, key.kind): n.bytes for key, n in report.traffic.items()}
        expected = textbook(name, rank)
        extra = found.keys() - expected.keys()
        assert extra <= {("tensor", "all-reduce"), ("all", "all-reduce"), *axis_over_all_ranks(name)}
        for key, size_bytes in expected.items():
            assert math.isclose(found[key], size_bytes, rel_tol=0.02), (rank, key)


def axis_over_all_ranks(name):
    """The axis that shares the default group, along which the step's four numbers then go."""
    parallel, size, _ = BOOK[name]
    config = ParallelConfig(**parallel)
    sizes = {"tensor": config.tensor, "pipeline": config.pipeline, "data": config.data_shard or size}
    return {(axis, "all-reduce") for axis, n in sizes.items() if n == size}


def test_what_the_textbook_leaves_out(dry):
    """Tensor ranks add up the gradients of what they all hold whole once a step, and the loss its sums, 3 numbers a
    token; all ranks add up 4 numbers a step."""
    _, size, m = BOOK["three axes"]
    norms = LAYERS // 4 * 4 * D
    expected = {0: 4 * (norms + T * D), size - 1: 4 * (norms + 2 * D) + 12 * m * B * T}
    for rank, size_bytes in expected.items():
        traffic = dry["book, three axes", rank].traffic
        assert traffic[Collective("tensor", "all-reduce", 2)].bytes == size_bytes
        assert traffic[Collective("all", "all-reduce", size)] == Traffic(1, 32)


def test_a_step_of_many_micro_batches_is_extended_exactly(dry):
    for rank in (0, 31):
        whole, found = dry["whole", rank], dry["extended", rank]
        assert found.micro_batches_run == (5, 6)
        assert found.micro_batches == whole.micro_batches == 9
        assert found.traffic == whole.traffic
        assert found.peak_activation_bytes == whole.peak_activation_bytes
        assert found.peak_bytes == whole.peak_bytes


@pytest.mark.parametrize("schedule", EXTENDED)
def test_every_schedule_is_extended_exactly(dry, schedule):
    whole, found = dry[schedule, 1], dry[schedule, 2]
    assert found.micro_batches_run == few_of(schedule)
    assert whole.micro_batches_run == (EXTENDED[schedule],)
    assert found.traffic == whole.traffic
    assert found.peak_activation_bytes == whole.peak_activation_bytes
    assert found.peak_bytes == whole.peak_bytes


def test_which_steps_are_run_whole():
    assert micro_batches_to_run(book_settings("three axes")) == (5,)
    assert micro_batches_to_run(book_settings("three axes", micro_batches=201)) == (5, 6)
    a, b = Collective("data", "all-gather", 2), Collective("tensor", "all-gather", 2)
    assert extended({a: Traffic(1, 8)}, {a: Traffic(1, 8), b: Traffic(1, 2)}, 3) == {a: Traffic(1, 8), b: Traffic(4, 8)}


def test_more_micro_batches_in_flight_hold_more(dry):
    """1F1B: stage s of 4 holds the activations of 4 - s micro-batches, here of equally many blocks each."""
    first, third = dry["book, three axes", 0], dry["book, three axes", 17]
    assert first.peak_activation_bytes > 1.6 * third.peak_activation_bytes


def test_no_tensor_rank_builds_the_gradient_of_the_whole_vocabulary(dry):
    """In bf16 and, added up, in fp32: a quarter of the rows, and not all."""
    whole = 8192 * D * (2 + 4)
    assert whole / 4 < dry["wide vocabulary", 0].peak_activation_bytes < whole / 2


def test_the_tracker_sees_every_byte_once():
    with FakeTensorMode():
        weight = torch.empty(100, 100)
        tracker = MemoryTracker([], [weight])
        with tracking(tracker):
            x = torch.empty(1000, 100)  # 400,000 bytes
            y = x @ weight  # 400,000 more
            z = y.view(-1)  # and no more
            assert tracker.live_bytes == 800_000
            del x, y
            assert tracker.live_bytes == 400_000
            z.untyped_storage().resize_(0)
            assert tracker.live_bytes == 0
            z.untyped_storage().resize_(1_200_000)
            del z
            torch.empty(10)
    assert tracker.live_bytes == 0
    assert tracker.peak_activation_bytes == 800_000
    assert tracker.peak_bytes == 840_000
