"""Spikes on known loss curves: BLOOM's, divergence, ordinary training in its phases, values that are not finite."""

import json
import math
import random

import pytest

from gpt.errors import ConfigError
from gpt.health.spikes import SpikeConfig, SpikeDetector
from gpt.training.config import CheckpointConfig, check_can_rewind


def curve(n_steps: int, *, seed: int, noise: float) -> list[float]:
    """A loss that falls as in training: fast, then as a power of the step, with a bump in warm-up. A batch ramp halves
    the noise over the first third of the steps."""
    draw = random.Random(seed)
    losses = []
    for step in range(1, n_steps + 1):
        trend = 1.8 + 9.2 * (1 + step / 40) ** -0.55 + 0.3 * math.exp(-(((step - 120) / 30) ** 2))
        scale = noise * (2 - min(1.0, 3 * step / n_steps))
        heavy = draw.gauss(0, 1) / math.sqrt(sum(draw.gauss(0, 1) ** 2 for _ in range(4)) / 4)  # Student's t, 4 degrees
        losses.append(trend + scale * heavy)
    return losses


def found(losses, config=None, *, first_step=1):
    detector = SpikeDetector(config or SpikeConfig())
    return [spike for step, loss in enumerate(losses, first_step) if (spike := detector.observe(step, loss))]


@pytest.mark.parametrize("noise", [0.003, 0.02, 0.15])
def test_ordinary_training_has_no_spike(noise):
    assert not any(found(curve(4000, seed=seed, noise=noise)) for seed in range(3))


# lm loss of iterations 31214 to 31222 and 31250 of BLOOM-176B, as its log has them (bigscience-workshop/bigscience,
# train/tr11-176B-ml/chronicles.md, 2022-04-12); the values between the last two are not published, only that they fell.
BLOOM = [2.198845, 2.220424, 2.595213, 2.241558, 2.345279, 5.098124, 3.492029, 3.213059, 2.804948]
BLOOM += [2.215699 + (2.804948 - 2.215699) * math.exp(-i / 8) for i in range(1, 28)]


def bloom(losses, at, *, usual=2.21):
    """Replace the losses from index `at` on by BLOOM's spike, shifted to their level."""
    level = sum(losses[at - 50 : at]) / 50 - usual
    return [*losses[:at], *(loss + level for loss in BLOOM), *losses[at + len(BLOOM) :]]


@pytest.mark.parametrize(("noise", "at"), [(0.003, 600), (0.02, 2500), (0.05, 3900)])
def test_the_spike_of_bloom_is_found_once_and_at_its_start(noise, at):
    """The jump to 5.1 is the sixth value. Whether the rise before it counts depends on the noise."""
    (spike,) = found(bloom(curve(4000, seed=2, noise=noise), at))
    assert at + 5 <= spike.first_step <= at + 6
    assert spike.step == spike.first_step + 2
    assert spike.loss > spike.limit > spike.usual_loss
    assert f"loss spike from step {spike.first_step:,} on" in spike.text


def test_a_run_that_diverges_is_reported_once():
    losses = curve(2000, seed=4, noise=0.02)
    (spike,) = found([*losses[:1000], *(loss + 4 for loss in losses[1000:])])
    assert spike.first_step == 1001


def test_values_that_are_not_finite_are_ignored():
    losses = bloom(curve(1500, seed=3, noise=0.02), 1200)
    (clean,) = found(losses)
    spoilt, detector, spikes = list(enumerate(losses, 1)), SpikeDetector(SpikeConfig()), []
    for position, bad in ((3, math.nan), (700, math.inf), (1100, math.nan), (1207, math.nan), (1209, -math.inf)):
        spoilt.insert(position, (0, bad))
    for step, loss in spoilt:
        spike = detector.observe(step, loss)
        spikes += [spike] if spike else []
    assert spikes == [clean]


def test_a_detector_continues_from_its_json_state_at_any_step():
    losses = bloom(curve(1700, seed=7, noise=0.02), 1500)
    (whole,) = found(losses)
    for stop in (0, 5, 255, 1500, 1505, 1506, 1507, 1508, 1600):
        detector = SpikeDetector(SpikeConfig())
        before = [detector.observe(step, loss) for step, loss in enumerate(losses[:stop], 1)]
        state = json.loads(json.dumps(detector.state()))
        assert len(state["losses"]) <= 128
        again = SpikeDetector.from_state(SpikeConfig(), state)
        after = [again.observe(step, loss) for step, loss in enumerate(losses[stop:], stop + 1)]
        assert [spike for spike in before + after if spike] == [whole]


def test_two_high_losses_are_no_spike_and_off_finds_none():
    losses = curve(1000, seed=8, noise=0.02)
    assert found([*losses[:800], 9.0, 9.0, *losses[800:]]) == []
    assert len(found([*losses[:800], 9.0, 9.0, 9.0, *losses[800:]])) == 1
    assert found([*losses[:800], *[9.0] * 50], SpikeConfig(action="off")) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patience_steps": 0}, "spike.patience_steps = 0 is invalid: must be at least 1"),
        ({"sigmas": 0.0}, "spike.sigmas = 0.0 is invalid: must be a finite number above 0"),
        ({"patience_steps": 40}, "at most a quarter of spike.window_steps = 128.*Use 32 or less"),
        ({"skip_steps": 100}, r"spike.skip_steps = 100 is invalid: must be at least .* = 103"),
        ({"window_steps": 10**6}, "at most 4096"),
    ],
)
def test_errors_name_key_value_and_rule(changes, words):
    with pytest.raises(ConfigError, match=words):
        SpikeConfig(**changes)


def test_the_rewind_target_is_rewind_steps_before_the_spike():
    losses = bloom(curve(1500, seed=3, noise=0.02), 1200)
    (spike,) = found(losses)
    assert SpikeConfig().rewind_target(spike) == spike.first_step - 100
    assert spike.why == f"the loss spike at step {spike.first_step}"


def test_a_rewind_needs_checkpoints_that_go_back_far_enough():
    rewinding = SpikeConfig(action="rewind")
    with pytest.raises(ConfigError, match=r"needs checkpoints to go back to: set checkpoint\.every_tokens"):
        check_can_rewind(rewinding, CheckpointConfig(), step_tokens=512)
    with pytest.raises(
        ConfigError, match=r"= 103 steps, but .*reach back 50 steps of 512; use checkpoint.keep_last = 4"
    ):
        check_can_rewind(rewinding, CheckpointConfig(every_tokens=50 * 512), step_tokens=512)
    check_can_rewind(rewinding, CheckpointConfig(every_tokens=50 * 512, keep_last=4), step_tokens=512)
    check_can_rewind(SpikeConfig(), CheckpointConfig(), step_tokens=512)
