"""Finds spikes in the training loss as a function of the losses alone; never rewinds a run or skips data itself.

    detector = SpikeDetector(config.spike)
    spike = detector.observe(step, loss)        # for every step that changed the weights, in order; step counts from 1
    state["loop"]["spikes"] = detector.state()  # JSON; SpikeDetector.from_state(config.spike, saved) goes on exactly
    if spike is not None and config.spike.action == "rewind":
        target = config.spike.rewind_target(spike)     # go back to the newest checkpoint at or before it
        first, stop = target, target + config.spike.skip_steps   # leave out the data of steps first + 1 to stop:
        skipped = skipped.without_samples(run.samples_seen(first), run.samples_seen(stop), why=spike.why)

A loss is high when it exceeds the median of the last `window_steps` losses by `sigmas` robust standard deviations
(1.4826 x the median absolute deviation) and by `min_rise_nats`; `patience_steps` high losses in a row are a spike.
Median and deviation bear nearly half of wild values in the window, so a spike needs no removing afterwards; OLMo-core's
rule (6 deviations from the mean, arXiv 2501.00656) lets one NaN decide 128 steps. What to do about a spike is PaLM's
remedy (arXiv 2204.02311, section 5.1): go back about 100 steps before it began, leave out the data of 200 to 500 steps.
docs/reliability.md has what the defaults were tried on.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from gpt.errors import ConfigError

_NORMAL = 1.4826  # standard deviation / median absolute deviation of a normal distribution


@dataclass(frozen=True)
class SpikeConfig:
    """The [spike] section of a recipe. `action` "report" writes an event and goes on."""

    action: Literal["off", "report", "rewind"] = "report"
    window_steps: int = 128
    sigmas: float = 6.0
    min_rise_nats: float = 0.1
    patience_steps: int = 3
    min_steps: int = 256  # steps seen before any may be a spike
    rewind_steps: int = 100  # how far before the first high loss the run goes back to
    skip_steps: int = 300  # from there on, the data of so many steps are left out
    max_rewinds: int = 20  # of the whole run; later spikes are only reported

    def __post_init__(self) -> None:
        least = {"window_steps": 8, "patience_steps": 1, "min_steps": 4, "rewind_steps": 1, "max_rewinds": 1}
        for key, bound in least.items():
            if getattr(self, key) < bound:
                raise ConfigError(f"spike.{key} = {getattr(self, key)} must be at least {bound}")
        for key in ("sigmas", "min_rise_nats"):
            value = getattr(self, key)
            if not 0 < value < math.inf:
                raise ConfigError(f"spike.{key} = {value} must be a finite number > 0")
        if self.window_steps > 4096:
            raise ConfigError(
                f"spike.window_steps = {self.window_steps} must be at most 4096: all of it is sorted in every step and "
                f"goes into every checkpoint"
            )
        if self.patience_steps > self.window_steps // 4:
            raise ConfigError(
                f"spike.patience_steps = {self.patience_steps} must be at most a quarter of spike.window_steps = "
                f"{self.window_steps}, or a spike becomes what is usual before it is found; try "
                f"{self.window_steps // 4}"
            )
        if self.skip_steps < self.rewind_steps + self.patience_steps:
            raise ConfigError(
                f"spike.skip_steps = {self.skip_steps} must be at least spike.rewind_steps + spike.patience_steps = "
                f"{self.rewind_steps + self.patience_steps}, so that the data of the high losses are left out"
            )

    def rewind_target(self, spike: "Spike") -> int:
        """The step to go back to: a checkpoint of this step or an earlier one. Below 1: there can be none."""
        return spike.first_step - self.rewind_steps


@dataclass(frozen=True)
class Spike:
    """A spike in the loss, as it stood when it was found."""

    first_step: int  # of the high losses in a row
    step: int  # of the last of them
    loss: float  # of the last of them
    usual_loss: float  # the median that they were compared with
    limit: float  # what they exceeded

    @property
    def why(self) -> str:
        """The reason that a skipped range carries."""
        return f"the loss spike at step {self.first_step}"

    @property
    def text(self) -> str:
        """A line for the operator."""
        return (
            f"loss spike from step {self.first_step:,} on: {self.loss:.4f} at step {self.step:,}, usual was "
            f"{self.usual_loss:.4f}, at most {self.limit:.4f}"
        )


class SpikeDetector:
    """Keeps the last `window_steps` losses and the length of the present run of high ones, and nothing else."""

    def __init__(self, config: SpikeConfig) -> None:
        self.config = config
        self._losses: deque[float] = deque(maxlen=config.window_steps)
        self._seen = 0  # losses in all
        self._high = 0  # high losses in a row, up to now
        self._first_high = 0  # step of the first of them

    @classmethod
    def from_state(cls, config: SpikeConfig, state: Mapping[str, Any]) -> "SpikeDetector":
        """A detector that goes on from what `state` returned. Another window keeps the newest losses that fit."""
        detector = cls(config)
        detector._losses.extend(float(loss) for loss in state["losses"])
        detector._seen, detector._high = int(state["seen"]), int(state["high"])
        detector._first_high = int(state["first_high"])
        return detector

    def state(self) -> dict[str, Any]:
        """All that later answers depend on, as JSON; floats survive JSON exactly."""
        return {
            "losses": list(self._losses),
            "seen": self._seen,
            "high": self._high,
            "first_high": self._first_high,
        }

    def observe(self, step: int, loss: float) -> Spike | None:
        """A spike when this loss completes one: once for each, however long it lasts. Equal on all ranks.

        Call it for the steps that changed the weights. A loss that is not finite is as if it had not been.
        """
        config = self.config
        if config.action == "off" or not math.isfinite(loss):
            return None
        usual, limit = self._usual_and_limit()
        self._losses.append(loss)
        self._seen += 1
        if loss <= limit:
            self._high = 0
            return None
        self._high += 1
        if self._high == 1:
            self._first_high = step
        return Spike(self._first_high, step, loss, usual, limit) if self._high == config.patience_steps else None

    def _usual_and_limit(self) -> tuple[float, float]:
        """The median of the window, and what a loss may be."""
        if self._seen < self.config.min_steps or not self._losses:
            return math.nan, math.inf
        usual = median(self._losses)
        deviation = _NORMAL * median(abs(loss - usual) for loss in self._losses)
        return usual, usual + max(self.config.sigmas * deviation, self.config.min_rise_nats)
