"""The training loop on a real engine of one process: steps, phases, saves, corrupt data, signals, resumed runs."""

import pytest
import torch

from gpt.training.config import CheckpointConfig, FaultConfig
from gpt.training.run import LoopState


def losses(small):
    return {line["step"]: line["loss"] for line in small.lines("metrics.jsonl") if "loss" in line}


def weights(engine):
    return [parameter.detach().clone() for _, parameter in engine.parameters]


def test_a_run_trains_to_its_last_step_and_reports(small, corpus, process_group):
    run = small.run_of(steps=6, evaluate_every_tokens=4 * 32, checkpoint=CheckpointConfig(every_tokens=64))
    outcome = small.train(run, small.engine_of(), corpus)
    assert (outcome.ended, outcome.state.step, outcome.tokens_seen) == ("total_tokens", 6, 6 * 32)
    seen = losses(small)
    assert list(seen) == [1, 2, 3, 4, 5, 6]
    assert seen[6] < seen[1], "it learns"
    evaluated = [line["step"] for line in small.lines("metrics.jsonl") if "validation/numbers/loss" in line]
    assert evaluated == [4, 6], "every 4 steps, and at the end"
    assert outcome.checkpoint == run.checkpoints / "step-000000006"
    assert outcome.checkpoint.is_dir()
    assert outcome.validation["numbers"].tokens == 16 * 8
    saved = [text for kind, text in small.events() if kind == "checkpoint_saved"]
    assert len(saved) == 3


def test_a_resumed_run_has_the_bits_of_the_uninterrupted_one(small, corpus, process_group):
    engine = small.engine_of()
    small.train(small.run_of(steps=6), engine, corpus)
    whole, expected = losses(small), weights(engine)
    small.train(small.run_of(steps=3), small.engine_of(), corpus)
    run = small.run_of(steps=6)
    engine = small.engine_of()
    saved = engine.checkpoints.shared.load_newest(run.checkpoints, at_most=3)
    state = LoopState.from_json(saved["loop"], step=saved["step"], spike=run.spike)
    small.train(run, engine, corpus, state=state)
    assert losses(small) == {step: whole[step] for step in (4, 5, 6)}
    assert all(torch.equal(a, b) for a, b in zip(weights(engine), expected, strict=True))


class StopsAfter:
    """A request to stop that comes when so many steps are done."""

    def __init__(self, steps, *, by_hand=False):
        self.left, self.by_hand = steps, by_hand

    def __call__(self):
        return self.left <= 0

    @property
    def interrupted(self):
        return self.by_hand and self.left <= 0

    def step_done(self):
        self.left -= 1


@pytest.mark.parametrize("ended", ["signal", "interrupt"])
def test_a_request_to_stop_ends_the_run_after_a_step_and_saves_it(ended, small, corpus, process_group):
    stop = StopsAfter(3, by_hand=ended == "interrupt")
    outcome = small.train(small.run_of(steps=50), small.engine_of(), corpus, stop=stop)
    assert (outcome.ended, outcome.state.step) == (ended, 4), "it is asked within each step"
    assert outcome.checkpoint is not None
    assert outcome.validation == {}, "no evaluation: the process must end soon"


def test_a_run_out_of_time_ends_after_one_step(small, corpus, process_group):
    outcome = small.train(small.run_of(steps=50, stop_after_s=1e-9), small.engine_of(), corpus)
    assert (outcome.ended, outcome.state.step) == ("stop_after_s", 1)


@pytest.mark.parametrize(("settings", "steps"), [({"every_s": 1e-9}, [1, 2, 3]), ({"every_s": 0}, [3]), ({}, [3])])
def test_a_run_without_an_interval_in_tokens_saves_by_the_clock(settings, steps, small, corpus, process_group):
    run = small.run_of(steps=3, checkpoint=CheckpointConfig(in_background=False, keep_last=5, **settings))
    small.train(run, small.engine_of(), corpus)
    assert sorted(run.checkpoints.glob("*")) == [run.checkpoints / f"step-{step:09}" for step in steps]


def test_a_finished_run_takes_no_step(small, corpus, process_group):
    run = small.run_of(steps=2)
    engine = small.engine_of()
    before = weights(engine)
    outcome = small.train(run, engine, corpus, state=small.state_of(run, step=2))
    assert (outcome.ended, outcome.state.step, outcome.tokens_per_s) == ("total_tokens", 2, 0.0)
    assert losses(small) == {}
    assert all(torch.equal(a, b) for a, b in zip(weights(engine), before, strict=True))


def test_a_step_that_meets_corrupt_data_is_taken_again_without_them(small, mixed_corpus, process_group):
    """The discarded attempt changes nothing: the run equals one whose recipe leaves the same samples out."""
    faults = FaultConfig(on_damaged_data="skip")
    engine = small.engine_of()
    outcome = small.train(small.run_of(steps=6, faults=faults), engine, mixed_corpus.damaged)
    assert outcome.state.skipped.ranges, "the damage was met"
    ours, expected = losses(small), weights(engine)
    run = small.run_of(steps=6)
    engine = small.engine_of()
    state = small.state_of(run)
    state.skipped = outcome.state.skipped
    small.train(run, engine, mixed_corpus.whole, state=state)
    assert losses(small) == ours
    assert all(torch.equal(a, b) for a, b in zip(weights(engine), expected, strict=True))
