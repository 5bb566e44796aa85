"""Simulated schedules against known formulas of their bubbles."""

import pytest

from parallel.layout.config import SEVERAL_STAGES
from parallel.planner.step_time.schedules import StageTimes, makespan, order, program, step_makespan


def times(stages, *, send=0.0):
    return StageTimes([1.0] * stages, [2.0] * stages, 0.5, send)


@pytest.mark.parametrize(("ranks", "batches"), [(2, 2), (4, 8), (4, 4), (8, 24)])
def test_bubbles_agree_with_the_formulas(ranks, batches):
    whole = 3 * (batches + ranks - 1)  # (m + p - 1) (f + b), arXiv 2104.04473 section 2.2
    assert step_makespan("1f1b", ranks, batches, times(ranks)) == whole
    assert step_makespan("gpipe", ranks, batches, times(ranks)) == whole
    for per_rank in (2, 3):
        span = step_makespan("interleaved_1f1b", ranks, batches, times(ranks * per_rank))
        assert span == 3 * (batches * per_rank + ranks - 1)
    zero = step_makespan("zbv_zero_bubble", ranks, max(batches, 2 * ranks), times(2 * ranks))
    assert zero < 3 * (2 * max(batches, 2 * ranks) + ranks - 1)


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe", *SEVERAL_STAGES])
def test_extrapolated_steps_equal_simulated_ones(schedule):
    ranks, batches = 4, 32
    per_rank = 2 if schedule in SEVERAL_STAGES else 1
    uneven = StageTimes(
        [1.0 + 0.1 * i for i in range(ranks * per_rank)], [2.0 - 0.1 * i for i in range(ranks * per_rank)], 0.6, 0.05
    )
    whole = makespan(program(schedule, ranks, per_rank, batches), ranks, uneven)
    assert step_makespan(schedule, ranks, batches, uneven) == pytest.approx(whole, rel=0.01)


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe", *SEVERAL_STAGES])
def test_every_stage_runs_every_micro_batch_once(schedule):
    per_rank = 2 if schedule in SEVERAL_STAGES else 1
    actions = [action for own in order(schedule, 4, per_rank, 8) for action in own]
    for stage in range(4 * per_rank):
        forward = sorted(batch for kind, at, batch in actions if at == stage and kind == "F")
        backward = sorted(batch for kind, at, batch in actions if at == stage and kind in "BI")
        assert forward == backward == list(range(8))


def test_a_message_delays_the_first_micro_batch_at_each_stage():
    assert step_makespan("gpipe", 4, 1, times(4, send=0.5)) == 12 + 2 * 3 * 0.5
