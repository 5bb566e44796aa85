"""Steps that update nothing, and the return to an earlier checkpoint.

tests/launch/training/test_spike_rewind.py and test_replica_mismatch.py have whole runs.
"""

import pytest
import torch

from gpt.errors import ConfigError
from gpt.health.spikes import Spike, SpikeConfig
from gpt.health.watchers import UNWATCHED
from gpt.telemetry.time_ledger import TimeLedger
from gpt.training.config import CheckpointConfig, FaultConfig
from gpt.training.engine import StepResult, Totals
from gpt.training.recovery import Recovery
from gpt.training.saver import RunSaver

REWIND = SpikeConfig(
    action="rewind", window_steps=8, min_steps=4, patience_steps=1, rewind_steps=2, skip_steps=3, max_rewinds=1
)
SPIKE = Spike(first_step=6, step=6, loss=9.0, usual_loss=3.0, limit=4.0)


def result_of(loss, *, skipped=False):
    return StepResult(Totals(loss * 10, 10), 1.5, skipped=skipped, discarded=False, flags=())


def recovery_of(small, run, engine, metrics=None):
    events, ledger = [], TimeLedger(None)

    def event(kind, text, **fields):
        events.append((kind, text))

    saver = RunSaver(run, engine, ledger=ledger, event=event)
    return Recovery(run, engine, saver, event=event, metrics=metrics, ledger=ledger, heartbeat=UNWATCHED), events


def test_skipped_steps_are_counted_and_too_many_in_a_row_end_the_run(small):
    run = small.run_of(faults=FaultConfig(max_skipped_steps=2))
    recovery, events = recovery_of(small, run, engine=None)
    state = small.state_of(run, step=1)
    bad = result_of(float("nan"), skipped=True)
    for finite in (False, False, True, False, False):
        assert recovery.check_loss(state, result_of(3.0) if finite else bad) is None
    assert (state.skipped_steps, state.skipped_in_a_row) == (4, 2), "in a row since the last good step"
    with pytest.raises(ConfigError, match=r"3 steps in a row \(faults\.max_skipped_steps = 2\).*at this step 0\.01"):
        recovery.check_loss(state, bad)
    assert [kind for kind, _ in events] == ["step_skipped"] * 4 + ["stopped"]
    assert "(4 such steps so far)" in events[3][1]


def test_a_spike_is_found_in_good_steps_alone(small):
    run = small.run_of(spike=REWIND)
    recovery, events = recovery_of(small, run, engine=None)
    state = small.state_of(run)
    for loss in (3.0, 3.1, 2.9, 3.0, 3.05):
        state.step += 1
        assert recovery.check_loss(state, result_of(loss)) is None
    assert recovery.check_loss(state, result_of(9.0, skipped=True)) is None
    state.step += 1
    spike = recovery.check_loss(state, result_of(9.0))
    assert spike is not None
    assert (spike.first_step, spike.loss) == (6, 9.0)
    assert events[-1] == ("spike", spike.text)


def test_a_run_that_only_reports_does_not_rewind(small):
    run = small.run_of(spike=SpikeConfig(action="report"))
    recovery, events = recovery_of(small, run, engine=None)
    assert not recovery.rewind(small.state_of(run, step=6), SPIKE)
    assert not events


def test_a_run_that_has_used_up_its_rewinds_says_so(small):
    run = small.run_of(spike=REWIND)
    recovery, events = recovery_of(small, run, engine=None)
    state = small.state_of(run, step=6)
    state.rewinds = 1
    assert not recovery.rewind(state, SPIKE)
    assert events == [("rewind_refused", "no rewind: there have been spike.max_rewinds = 1 already")]


def test_a_rewind_returns_to_a_checkpoint_and_skips_the_data_around_the_spike(small, corpus, process_group):
    checkpoint = CheckpointConfig(every_tokens=32, keep_last=6, in_background=False)
    run = small.run_of(steps=6, checkpoint=checkpoint, spike=REWIND)
    engine = small.engine_of()
    outcome = small.train(run, engine, corpus)
    state = outcome.state
    late = [parameter.detach().clone() for _, parameter in engine.parameters]
    assert [path.name[-1] for path in sorted(run.checkpoints.glob("step-*"))] == ["1", "2", "3", "4", "5", "6"]
    with small.metrics_of() as metrics:
        recovery, events = recovery_of(small, run, engine, metrics)
        assert recovery.rewind(state, SPIKE)
    assert (state.step, state.rewinds) == (4, 1)
    assert state.skipped.spans == ((4 * 4, 7 * 4),), "from the target on, 3 steps of 4 samples"
    assert any(kind == "rewind" and "step 4; positions 16 to 27" in text for kind, text in events)
    assert [path.name[-1] for path in sorted(run.checkpoints.glob("step-*"))] == ["1", "2", "3", "4"]
    assert not all(torch.equal(a, b.detach()) for a, (_, b) in zip(late, engine.parameters, strict=True))
    assert engine.checkpoints.shared.load_newest(run.checkpoints, at_most=9)["loop"]["rewinds"] == 1, "saved at once"


def test_without_an_old_enough_checkpoint_nothing_changes(small, process_group):
    run = small.run_of(spike=REWIND)
    recovery, events = recovery_of(small, run, small.engine_of())
    state = small.state_of(run, step=6)
    before = state.to_json()
    assert not recovery.rewind(state, SPIKE)
    assert (state.step, state.to_json()) == (6, before)
    assert events == [("rewind_refused", "no rewind: no checkpoint of step 4 or earlier is left")]


def test_equal_replicas_are_compared_once_a_step(small, process_group):
    engine = small.engine_of()
    recovery, events = recovery_of(small, small.run_of(), engine)
    recovery.check_replicas(small.state_of(small.run_of(), step=3))
    assert not events
