"""When each phase is due, and what the phases of a run report."""

import pytest

from gpt.telemetry.time_ledger import TimeLedger
from gpt.training.batches import CorruptDataHandler
from gpt.training.objective import NextToken
from gpt.training.phases import Phase, Reports, activity

TOKENS = 32  # a step


def nothing():
    return None


@pytest.mark.parametrize(
    ("phase", "due"),
    [
        (Phase(nothing, every_tokens=3 * TOKENS), [3, 6, 9]),
        (Phase(nothing, every_steps=4), [4, 8]),
        (Phase(nothing, every_tokens=5 * TOKENS, every_steps=4), [4, 5, 8, 10]),
        (Phase(nothing), []),
    ],
)
def test_phases_within_a_run_are_due_by_tokens_or_steps(small, phase, due):
    run = small.run_of(steps=20)
    assert [step for step in range(1, 11) if phase.is_due(run, step, None, planned_end=False)] == due


@pytest.mark.parametrize(
    ("at", "ends"),
    [
        ("planned end", {"total_tokens"}),
        ("any end", {"total_tokens", "signal", "stop_after_s", "target_loss"}),
        ("no end", set()),
    ],
)
def test_at_an_end_only_the_kind_of_end_decides(small, at, ends):
    """A multiple of tokens is not due after a signal: the process must end soon."""
    run = small.run_of(steps=4)
    phase = Phase(nothing, every_tokens=TOKENS, every_steps=1, at=at)
    known = ("total_tokens", "signal", "stop_after_s", "target_loss")
    assert {end for end in known if phase.is_due(run, 4, end, planned_end=end == "total_tokens")} == ends


def reports_of(small, run, corpus, metrics, heartbeat):
    data, validation = small.data_of(corpus)
    engine, state = small.engine_of(), small.state_of(run, step=2)
    corrupt = CorruptDataHandler(run, engine, data, first_step=0, event=lambda *_, **__: None, save=nothing)
    return Reports(
        run,
        engine,
        NextToken(),
        data,
        validation,
        state=state,
        corrupt_data=corrupt,
        metrics=metrics,
        ledger=TimeLedger(None),
        heartbeat=heartbeat,
    )


class Beats:
    """A heartbeat that remembers its beats."""

    def __init__(self):
        self.beats = []

    def beat(self, phase, step):
        self.beats.append((phase, step))


def test_evaluation_reports_the_loss_and_ends_the_run_at_its_target(small, corpus, process_group):
    heartbeat = Beats()
    for target, end in ((0.1, None), (50.0, "target_loss")):
        run = small.run_of(evaluate_every_tokens=TOKENS, target_loss=target)
        with small.metrics_of() as metrics:
            reports = reports_of(small, run, corpus, metrics, heartbeat)
            assert reports.evaluate() == end
        assert reports.results["numbers"].tokens == 16 * 8, "validation_tokens"
        values = small.lines("metrics.jsonl")[-1]
        assert values["validation/numbers/loss"] == reports.results["numbers"].mean
    assert set(heartbeat.beats) == {("evaluation", 2)}


def test_the_phases_are_those_of_the_recipe(small, corpus, process_group):
    with small.metrics_of() as metrics:
        reports = reports_of(small, small.run_of(), corpus, metrics, Beats())
        progress, evaluation = reports.phases(None, None)
        assert (progress.at, evaluation.at, evaluation.every_tokens) == ("any end", "planned end", None)
        progress.work()
    assert small.lines("metrics.jsonl")[-1]["epochs/numbers"] == 8 / 249
    others = reports_of(small, small.run_of(), corpus, None, Beats())
    assert len(others.phases(None, None)) == 1, "ranks without metrics report no progress, but they evaluate"


def test_an_activity_beats_and_counts_its_time():
    heartbeat, ledger = Beats(), TimeLedger(None)
    with activity("few_shot", 7, heartbeat, ledger, counted_as="evaluation"):
        pass
    assert heartbeat.beats == [("few_shot", 7)]
    assert "evaluation" in ledger.seconds


def test_what_is_due_at_the_planned_end_runs_although_an_evaluation_ended_the_run_too(small):
    """The last step may also be the one that reaches train.target_loss: samples of the end are written all the same."""
    run = small.run_of(steps=4)
    samples, progress, save = (
        Phase(nothing, every_tokens=TOKENS, at=at) for at in ("planned end", "any end", "no end")
    )
    assert samples.is_due(run, 4, "target_loss", planned_end=True)
    assert progress.is_due(run, 4, "target_loss", planned_end=True)
    assert not save.is_due(run, 4, "target_loss", planned_end=True)
    assert not samples.is_due(run, 2, "target_loss", planned_end=False)
