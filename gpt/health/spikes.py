"""Find spikes in the training loss, as a function of the losses only. The loop decides whether to rewind.

    detector = SpikeDetector(config.spike)
    spike = detector.observe(step, loss)        # for every step that changed the weights, in order; steps count from 1
    state["loop"]["spikes"] = detector.state()  # JSON; SpikeDetector.from_state(config.spike, saved) continues exactly
    if spike is not None and config.spike.action == "rewind":
        target = config.spike.rewind_target(spike)     # return to the newest checkpoint at or before it
        first, stop = target, target + config.spike.skip_steps   # skip the data of steps first + 1 to stop:
        skipped = skipped.without_samples(run.samples_seen(first), run.samples_seen(stop), why=spike.why)

A loss is high when it exceeds the median of the last `window_steps` losses by `sigmas` robust standard deviations
(1.4826 x the median absolute deviation) and by `min_rise_nats`; `patience_steps` high losses in a row are a spike.
The median and MAD tolerate almost 50% outliers, so spikes can stay in the window. OLMo-core's rule (6 deviations from
the mean, arXiv 2501.00656) lets one NaN decide 128 steps. The remedy is PaLM's (arXiv 2204.02311, section 5.1): return
to a checkpoint about 100 steps before the spike, and skip the data of 200 to 500 steps. The defaults were
tried on the runs of docs/results/reliability/bad_steps.md.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from gpt.errors import ConfigError

_MAD_TO_SIGMA = 1.4826  # standard deviation / median absolute deviation of a normal distribution


@dataclass(frozen=True)
class SpikeConfig:
    """The [spike] section of a recipe: spikes of the training loss."""

    action: Literal["off", "report", "rewind"] = "report"
    """What to do on a loss spike: nothing, write an event, or also return to an earlier checkpoint and skip data."""
    window_steps: int = 128
    """Losses whose median and deviation are the usual level."""
    sigmas: float = 6.0
    """Robust standard deviations above the median from which a loss is high."""
    min_rise_nats: float = 0.1
    """Nats above the median from which a loss is high."""
    patience_steps: int = 3
    """High losses in a row that are a spike."""
    min_steps: int = 256
    """Steps before the first spike can be found."""
    rewind_steps: int = 100
    """Steps that the run returns, counted from the first high loss."""
    skip_steps: int = 300
    """Steps whose data is skipped after returning."""
    max_rewinds: int = 20
    """Rewinds in the whole run. Later spikes are only reported."""

    def __post_init__(self) -> None:
        minimum = {"window_steps": 8, "patience_steps": 1, "min_steps": 4, "rewind_steps": 1, "max_rewinds": 1}
        for key, bound in minimum.items():
            if getattr(self, key) < bound:
                raise ConfigError(f"spike.{key} = {getattr(self, key)} is invalid: must be at least {bound}")
        for key in ("sigmas", "min_rise_nats"):
            value = getattr(self, key)
            if not 0 < value < math.inf:
                raise ConfigError(f"spike.{key} = {value} is invalid: must be a finite number above 0")
        if self.window_steps > 4096:
            raise ConfigError(
                f"spike.window_steps = {self.window_steps} is invalid: must be at most 4096, because every step sorts "
                f"the window and every checkpoint stores it"
            )
        if self.patience_steps > self.window_steps // 4:
            raise ConfigError(
                f"spike.patience_steps = {self.patience_steps} is invalid: must be at most a quarter of "
                f"spike.window_steps = {self.window_steps}, or a spike becomes the median before it is found. Use "
                f"{self.window_steps // 4} or less"
            )
        if self.skip_steps < self.rewind_steps + self.patience_steps:
            raise ConfigError(
                f"spike.skip_steps = {self.skip_steps} is invalid: must be at least spike.rewind_steps + "
                f"spike.patience_steps = {self.rewind_steps + self.patience_steps}, so that the data of the "
                f"high losses are skipped"
            )

    def rewind_target(self, spike: "Spike") -> int:
        """Return the step to return to: that of a checkpoint at or before it. Below 1, no such checkpoint can exist."""
        return spike.first_step - self.rewind_steps


@dataclass(frozen=True)
class Spike:
    """A spike in the loss, at the time it was found."""

    first_step: int  # of the consecutive high losses
    step: int  # of the last high loss
    loss: float  # at that step
    usual_loss: float  # the median of the window
    limit: float  # which the losses exceeded

    @property
    def why(self) -> str:
        """The reason stored with the skipped range."""
        return f"the loss spike at step {self.first_step}"

    @property
    def text(self) -> str:
        """One line for the operator."""
        return (
            f"loss spike from step {self.first_step:,} on: {self.loss:.4f} at step {self.step:,}; the median was "
            f"{self.usual_loss:.4f}, the limit {self.limit:.4f}"
        )


class SpikeDetector:
    """Finds spikes. Its whole state is the last `window_steps` losses, and the count of consecutive high losses."""

    def __init__(self, config: SpikeConfig) -> None:
        self.config = config
        self._losses: deque[float] = deque(maxlen=config.window_steps)
        self._seen = 0  # losses so far
        self._high = 0  # consecutive high losses so far
        self._first_high = 0  # step of the first of them

    @classmethod
    def from_state(cls, config: SpikeConfig, state: Mapping[str, Any]) -> "SpikeDetector":
        """Restore a detector from the result of `state`. A smaller window keeps the newest losses."""
        detector = cls(config)
        detector._losses.extend(float(loss) for loss in state["losses"])
        detector._seen, detector._high = int(state["seen"]), int(state["high"])
        detector._first_high = int(state["first_high"])
        return detector

    def state(self) -> dict[str, Any]:
        """Return the whole state, ready for JSON. JSON preserves floats exactly."""
        return {
            "losses": list(self._losses),
            "seen": self._seen,
            "high": self._high,
            "first_high": self._first_high,
        }

    def observe(self, step: int, loss: float) -> Spike | None:
        """Return a spike if this loss completes one; each spike is returned once. Identical on all ranks.

        Call it for every step that changed the weights. Losses that are not finite are ignored.
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
        """Return the median of the window, and the limit of a normal loss."""
        if self._seen < self.config.min_steps or not self._losses:
            return math.nan, math.inf
        usual = median(self._losses)
        deviation = _MAD_TO_SIGMA * median(abs(loss - usual) for loss in self._losses)
        return usual, usual + max(self.config.sigmas * deviation, self.config.min_rise_nats)
