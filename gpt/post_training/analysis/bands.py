"""Healthy bands of the metrics of a policy's training, for plots and for the rules in `symptoms.py`."""

from dataclasses import dataclass
from typing import Literal

from gpt.post_training.analysis.series import IterationSeries

Reference = Literal["value", "factor of start", "above start"]


@dataclass(frozen=True)
class HealthyBand:
    """A metric, its title, and the band in which it is healthy. None: no bound on that side.

    `reference`: bounds are values, factors of the metric's starting value, or differences to it. `text` is the band in
    words, `source` where it comes from.
    """

    metric: str
    title: str
    low: float | None
    high: float | None
    reference: Reference
    text: str = ""
    source: str = ""

    def bounds(self, series: IterationSeries) -> tuple[float | None, float | None]:
        """The band of one run as values."""
        return self._bound(self.low, series), self._bound(self.high, series)

    def _bound(self, bound: float | None, series: IterationSeries) -> float | None:
        if bound is None or self.reference == "value":
            return bound
        return bound * series.start if self.reference == "factor of start" else series.start + bound


MAX_KL = 10.0  # nats a response
KL_EXPLODED = 2 * MAX_KL
MIN_KL = -0.1  # noise of the estimate in a small batch near KL 0
MAX_CLIP_FRACTION, CLIP_FRACTION_HIGH = 0.2, 0.3
MAX_MISSING_END, MISSING_END_HIGH = 0.05, 0.2
LENGTH_CHANGE = 0.2
ENTROPY_COLLAPSED = 0.25
REWARD_SATURATED = 0.1
MAX_RATIO_ERROR = 1e-6
# Rounding in bf16 gives a gap of 0.043 on SmolLM2-135M, in fp32 below 1e-5.
MAX_SAMPLER_GAP, SAMPLER_GAP_GROWN, SAMPLER_GAP_HIGH = 0.05, 0.02, 0.1
MAX_PTX_RISE, PTX_RISE_HIGH = 0.02, 0.05
DEAD_CRITIC = 0.02

OURS = "our choice"
BANDS = (
    HealthyBand("reward", "Reward, mean score", None, None, "value"),
    HealthyBand("kl", "KL, nats a response", 0.0, MAX_KL, "value", "0 to 10", "TRL, Training FAQ"),
    HealthyBand("entropy", "Entropy, nats a token", 0.5, None, "factor of start", "above half of the start", OURS),
    HealthyBand("length", "Length, tokens a response", 0.8, 1.2, "factor of start", "within 20% of the start", OURS),
    HealthyBand("missing_end", "Responses without an end token", 0.0, MAX_MISSING_END, "value", "at most 5%", OURS),
    HealthyBand("clip_fraction", "Clip fraction", 0.0, MAX_CLIP_FRACTION, "value", "at most 20%", OURS),
    HealthyBand(
        "explained_variance", "Explained variance of the critic", 0.0, 1.0, "value", "above 0", "0 is a constant critic"
    ),
    HealthyBand(
        "ptx_loss", "Pre-training loss, nats a token", None, MAX_PTX_RISE, "above start", "0.02 above the start", OURS
    ),
    HealthyBand(
        "reward_std", "Standard deviation of the reward", 0.5, None, "factor of start", "above half of the start", OURS
    ),
    HealthyBand("sampler_gap", "Sampler gap, nats a token", 0.0, MAX_SAMPLER_GAP, "value", "at most 0.05", OURS),
    HealthyBand("gold_reward", "Gold reward, not trained on", None, None, "value"),
)
