"""The dry run compared with real processes, and extrapolated steps with steps that are run whole."""

import dataclasses
import math

import layout_runs
import pytest
from dry_runs import LAUNCH_TIMEOUT_S, LAYERS, VOCAB, B, D, Labels, T, book_settings, run_all

from gpt.model.config import ModelConfig
from gpt.post_training.dpo import Preferences
from gpt.training.optimizer import OptimizerConfig
from parallel.engines.settings import EngineSettings
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout
from parallel.planner.dry_run import micro_batches_to_run

pytestmark = pytest.mark.timeout(2 * LAUNCH_TIMEOUT_S)
# On real processes and in the dry run: name: (processes, parallel, micro-batch size)
REAL = {
    "one": (1, {}, 2),
    "tensor": (2, {"tensor": 2}, 2),
    "tensor, whole sequences": (2, {"tensor": 2, "sequence_parallel": False}, 2),
    "1f1b": (2, {"pipeline": 2}, 2),
    "zero 3": (4, {"data": 4, "zero_stage": 3}, 1),
    "hybrid, tensor": (8, {"tensor": 2, "data": 4, "data_shard": 2}, 1),
    "pipeline, zero 3": (4, {"pipeline": 2, "data": 2, "zero_stage": 3, "precision": "bf16"}, 1),
    "all axes": (8, {"tensor": 2, "pipeline": 2, "data": 2}, 1),
    "v": (4, {"tensor": 2, "pipeline": 2, "schedule": "zbv_zero_bubble"}, 1),
    "gpipe": (4, {"tensor": 2, "pipeline": 2, "schedule": "gpipe", "recompute": "full", "precision": "bf16"}, 2),
}
# Layouts whose peaks are compared too, operator by operator, with the number of messages in flight that a real process
# may hold. In the dry run no message is in flight.
PEAKS = {"one": 0, "tensor": 0, "tensor, whole sequences": 0, "1f1b": 1}
# Peaks of these schedules fall from ZeRO 1 to 3. GPipe keeps whole backward passes, the V splits them.
SHARDED = ("gpipe", "1f1b", "zbv_zero_bubble")
# Micro-batches of a step that is run whole, and extrapolated from two shorter ones
EXTRAPOLATED = {"gpipe": 7, "interleaved_1f1b": 12, "zbv_zero_bubble": 12, "dualpipev": 12}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """What a real process held and sent, by layout and rank."""
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
    """Reports of the dry run by (layout, rank): of the first and the last rank of REAL, and of extrapolated steps."""
    jobs = {}
    for name, (size, parallel, micro) in REAL.items():
        run = {"world_size": size, "parallel": parallel, "micro_batch_size": micro}
        for rank in {0, size - 1}:
            jobs[name, rank] = (layout_runs.settings_of(run), rank, layout_runs.SEQ_LEN, None)
    for rank in (0, 17):
        jobs["three axes", rank] = (book_settings("three axes"), rank, T, None)
    many = book_settings("three axes", micro_batches=9)
    for rank in (0, 31):
        jobs["whole", rank] = (many, rank, T, (9,))
        jobs["extrapolated", rank] = (many, rank, T, (5, 6))
    for schedule, count in EXTRAPOLATED.items():
        for runs in ((count,), few_of(schedule)):
            jobs[schedule, len(runs)] = (scheduled(schedule, micro_batches=count), 0, T, runs)
    for schedule in SHARDED:
        for zero in (1, 2, 3):
            jobs[f"{schedule}, ZeRO {zero}", 0] = (scheduled(schedule, micro_batches=4, zero_stage=zero), 0, T, None)
    jobs["wide vocabulary", 0] = (wide_vocabulary(), 0, T, None)
    return run_all(jobs)


def scheduled(schedule, *, micro_batches, zero_stage=1):
    """Settings of a pipeline of 2 with 2 data ranks."""
    config = ParallelConfig(pipeline=2, schedule=schedule, zero_stage=zero_stage)
    model = ModelConfig(VOCAB, T, LAYERS, D, n_heads=8)
    batch = BatchConfig(B, B * T * 2 * micro_batches)
    layout = resolve_layout(config, batch, model=model, seq_len=T, world_size=4)
    return EngineSettings(model, config, layout, OptimizerConfig(learning_rate=1e-3), B, seed=1)


def few_of(schedule):
    """The two numbers of micro-batches from which a long step of this schedule is extrapolated."""
    return micro_batches_to_run(scheduled(schedule, micro_batches=200))


def wide_vocabulary():
    """8,192 rows, 2,048 of them on a tensor rank."""
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
    """Equal to the byte, except that a rank of a pipeline holds a message in flight, and the vote on its shape."""
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


@pytest.mark.parametrize("schedule", SHARDED)
def test_each_zero_stage_lowers_the_peak_of_a_pipeline(dry, schedule):
    """What the rank keeps between steps is the same for all three."""
    one, two, three = (dry[f"{schedule}, ZeRO {zero}", 0] for zero in (1, 2, 3))
    assert three.peak_bytes < two.peak_bytes < one.peak_bytes
    for key in ("parameter_bytes", "gradient_bytes", "optimizer_bytes"):
        assert getattr(one, key) == getattr(two, key) == getattr(three, key)


def test_a_step_of_many_micro_batches_is_extrapolated_exactly(dry):
    for rank in (0, 31):
        whole, found = dry["whole", rank], dry["extrapolated", rank]
        assert found.micro_batches_run == (5, 6)
        assert found.micro_batches == whole.micro_batches == 9
        assert found.traffic == whole.traffic
        assert found.peak_activation_bytes == whole.peak_activation_bytes
        assert found.peak_bytes == whole.peak_bytes


@pytest.mark.parametrize("schedule", EXTRAPOLATED)
def test_every_schedule_is_extrapolated_exactly(dry, schedule):
    whole, found = dry[schedule, 1], dry[schedule, 2]
    assert found.micro_batches_run == few_of(schedule)
    assert whole.micro_batches_run == (EXTRAPOLATED[schedule],)
    assert found.traffic == whole.traffic
    assert found.peak_activation_bytes == whole.peak_activation_bytes
    assert found.peak_bytes == whole.peak_bytes


def test_the_batch_is_the_objectives():
    """Masks and labels are in it, on the first and the last stage. The files of [data] do not exist."""
    ranks = {rank: (book_settings("three axes"), rank, T, None) for rank in (0, 31)}
    for rank, report in run_all(ranks, Labels(), sampling="document").items():
        assert report.rank == rank
        assert report.peak_activation_bytes > 0
    masked = run_all({0: (book_settings("tensor"), 0, T, None)}, document_mask=True)[0]
    plain = run_all({0: (book_settings("tensor"), 0, T, None)})[0]
    assert masked.traffic == plain.traffic
    assert masked.peak_bytes > plain.peak_bytes, "positions and segment ids are counted"


def test_the_weights_of_a_reference_model_count():
    job = {0: (book_settings("three axes"), 0, T, None)}
    plain = run_all(job)[0]
    found = run_all(job, Preferences(0.1), sampling="document", streams=("learned", "marks"))[0]
    assert found.parameter_bytes == 2 * plain.parameter_bytes
    assert found.optimizer_bytes == plain.optimizer_bytes
    assert found.peak_bytes > plain.peak_bytes + plain.parameter_bytes


def test_only_long_steps_are_extrapolated():
    assert micro_batches_to_run(book_settings("three axes")) == (5,)
    assert micro_batches_to_run(book_settings("three axes", micro_batches=201)) == (5, 6)


def test_more_micro_batches_in_flight_hold_more(dry):
    """1F1B: stage s of 4 holds the activations of 4 - s micro-batches. Here all stages have equally many blocks."""
    first, third = dry["three axes", 0], dry["three axes", 17]
    assert first.peak_activation_bytes > 1.6 * third.peak_activation_bytes


def test_no_tensor_rank_builds_the_gradient_of_the_whole_vocabulary(dry):
    """A rank has a quarter of the rows: once in bf16 and, accumulated, once in fp32."""
    whole = 8192 * D * (2 + 4)
    assert whole / 4 < dry["wide vocabulary", 0].peak_activation_bytes < whole / 2
