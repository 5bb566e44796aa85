"""A run's derived numbers, the loop's state in checkpoints, and the values of a step."""

import json
from itertools import pairwise

import pytest

from gpt.adapters.config import AdapterConfig, adapter_parameters
from gpt.data.skipped import SkippedData
from gpt.health.spikes import SpikeConfig, SpikeDetector
from gpt.training.config import CheckpointConfig
from gpt.training.engine import StepResult, Totals
from gpt.training.run import LoopState, step_values
from gpt.training.schedule import BatchRamp

SPIKE = SpikeConfig(min_steps=4, window_steps=8, patience_steps=2)
TOKENS = 32  # a step


def state_at(step):
    detector = SpikeDetector(SPIKE)
    for i in range(step):
        detector.observe(i + 1, 3.0 - 0.1 * i)
    skipped = SkippedData.stated([(5, 9)]).with_range(20, 22, why="the loss spike at step 3")
    return LoopState(step, skipped, detector, skipped_steps=3, skipped_in_a_row=1, rewinds=2)


def test_the_loops_state_survives_json():
    state = state_at(6)
    table = json.loads(json.dumps(state.to_json()))
    again = LoopState.from_json(table, step=6, spike=SPIKE)
    assert again.to_json() == state.to_json()
    assert (again.step, again.skipped.ranges, again.spikes.state()) == (6, state.skipped.ranges, state.spikes.state())
    assert [again.spikes.observe(7 + i, 9.0) for i in range(3)] == [state.spikes.observe(7 + i, 9.0) for i in range(3)]


def test_a_rewind_takes_step_and_losses_back_and_keeps_the_counts():
    earlier, state = state_at(4), state_at(8)
    state.skipped_steps, state.skipped_in_a_row = 7, 5
    skipped = state.skipped.with_range(40, 50, why="the loss spike at step 7")
    saved = json.loads(json.dumps({"step": 4, "loop": earlier.to_json()}))
    state.rewind_to(saved, spike=SPIKE, skipped=skipped)
    assert (state.step, state.spikes.state()) == (4, earlier.spikes.state())
    assert (state.skipped, state.rewinds) == (skipped, 3)
    assert (state.skipped_steps, state.skipped_in_a_row) == (7, 1)


def test_due_is_once_for_each_multiple_of_tokens(small):
    run = small.run_of(steps=10)
    assert [step for step in range(12) if run.due(3 * TOKENS, step)] == [3, 6, 9]
    assert [step for step in range(12) if run.due(80, step)] == [3, 5, 8, 10], "the first step at or after it"
    assert [step for step in range(4) if run.due(1, step)] == [1, 2, 3], "several multiples in a step count once"
    assert not any(run.due(None, step) for step in range(12))


def test_samples_follow_the_batch_ramp(small):
    ramp = BatchRamp(full_tokens=64, initial_tokens=16, increment_tokens=16, ramp_tokens=96)
    run = small.replace(small.run_of(), batch=ramp)
    seen = [run.samples_seen(step) for step in range(12)]
    assert seen[0] == 0
    assert [(b - a) * 8 for a, b in pairwise(seen)] == [ramp.step_tokens(i) for i in range(11)]


def test_retention_keeps_the_steps_that_the_recipe_names(small):
    config = CheckpointConfig(every_tokens=TOKENS, keep_last=3, keep_every_tokens=4 * TOKENS)
    keep = small.run_of(checkpoint=config).retention
    assert (keep.last, [step for step in range(1, 13) if keep.permanent(step)]) == (3, [4, 8, 12])
    assert not any(map(small.run_of().retention.permanent, range(1, 13)))


@pytest.mark.parametrize(("steps", "every"), [(4, 1), (100, 10), (25, 2)])
def test_epochs_are_logged_about_ten_times(small, steps, every):
    assert small.run_of(steps=steps).epochs_every_steps == every


def test_the_values_of_a_step(small):
    totals = Totals(96.0, 32, {"z_loss": 0.5})
    result = StepResult(totals, 0.7, skipped=False, discarded=False, flags=())
    run = small.run_of()
    values = step_values(run, result, 1e-3, step=2, elapsed_s=0.5)
    assert (values["loss"], values["gradient_norm"], values["z_loss"]) == (3.0, 0.7, 0.5)
    assert (values["tokens_per_s"], values["tokens_seen"], values["step_s"]) == (64.0, 64, 0.5)
    assert "mfu" not in values, "the peak is unknown"
    known = small.replace(run, peak_flops_per_s=1e9)
    flops = run.model.train_flops_per_token(run.seq_len)
    assert step_values(known, result, 1e-3, step=2, elapsed_s=0.5)["mfu"] == pytest.approx(flops * 64 / 1e9)


def test_frozen_weights_have_no_gradient_to_compute(small):
    run = small.run_of()
    adapter = AdapterConfig(rank=2)
    adapted = small.replace(run, adapter=adapter)
    matrices = (run.flops_per_token - 12 * run.model.n_layers * run.model.d_model * run.seq_len) / 6
    assert adapted.flops_per_token == pytest.approx(
        run.flops_per_token - 2 * matrices + 6 * adapter_parameters(run.model, adapter)
    )
