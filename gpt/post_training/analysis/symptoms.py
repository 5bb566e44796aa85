"""The rules that find faults of a policy's training in its metrics; `diagnosis.py` has their names and advice."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gpt.post_training.analysis import bands
from gpt.post_training.analysis.series import (
    MIN_SPAN,
    WINDOW,
    IterationSeries,
    PolicyMetrics,
    Span,
    Values,
    aligned,
    newest_span,
    running_mean,
    span_outside,
)

CRITIC_WARM_UP = 10  # iterations; InstructGPT warms its learning rate up for as many
GROWTH, GROWTH_ITERATIONS = 4.0, 10
MIN_RELATED = 12  # iterations for a correlation
RELATED, SIGNIFICANT_T = 0.4, 3.0
NOISE_LIMIT = 4.0  # standard errors


@dataclass(frozen=True)
class Evidence:
    """The iterations in which a fault shows, and the numbers that show it, as a phrase."""

    span: Span
    numbers: str


@dataclass(frozen=True)
class Symptom:
    """One fault: its name, the rule in words, where the rule comes from, and remedies in order of likelihood."""

    name: str
    rule: str
    source: str
    advice: str
    find: Callable[[PolicyMetrics], Evidence | None]


def negative_kl(metrics: PolicyMetrics) -> Evidence | None:
    return _outside(metrics, "kl", lambda kl: kl < bands.MIN_KL, "KL {now:.3g} nats a response, lowest {low:.3g}")


def exploding_kl(metrics: PolicyMetrics) -> Evidence | None:
    series = metrics.get("kl")
    if series is None:
        return None
    late = series.smooth()
    before = np.concatenate([np.full(min(GROWTH_ITERATIONS, len(late)), np.nan), late[:-GROWTH_ITERATIONS]])
    with np.errstate(invalid="ignore"):
        grown = (late > bands.MAX_KL) & (late > GROWTH * np.maximum(before, 0.0))
        span = newest_span(series, (late > bands.KL_EXPLODED) | grown, series.values > bands.MAX_KL)
    return _evidence(series, span, "KL {now:.3g} nats a response, highest {high:.3g}")


def dead_critic(metrics: PolicyMetrics) -> Evidence | None:
    text = "explained variance {now:.3g}"
    return _outside(
        metrics, "explained_variance", lambda ev: ev <= bands.DEAD_CRITIC, text, after=CRITIC_WARM_UP, least=5
    )


def length_gaming(metrics: PolicyMetrics) -> Evidence | None:
    """Reward and length rise together, and their changes agree where KL does not explain them."""
    reward, length = metrics.get("reward"), metrics.get("length")
    if reward is None or length is None:
        return None
    iterations, _ = aligned(reward, length)
    if len(iterations) < MIN_RELATED or reward.recent <= reward.start:
        return None
    limit = (1 + bands.LENGTH_CHANGE) * length.start
    span = span_outside(length, lambda tokens: tokens > limit, after=WINDOW)
    logged = metrics.get("reward_length_correlation")
    related = logged.recent if logged is not None else _partial_correlation(metrics, reward, length)
    if span is None or not span.lasting or related < RELATED:
        return None
    how = "within a batch" if logged is not None else "of what KL does not explain"
    text = (
        f"length {length.start:.4g} to {length.recent:.4g} tokens, reward {reward.start:.3g} to {reward.recent:.3g}, "
        f"their correlation {how} {related:.2f}"
    )
    return Evidence(span, text)


def _partial_correlation(metrics: PolicyMetrics, reward: IterationSeries, length: IterationSeries) -> float:
    """The correlation of reward and length without the part that sqrt(KL), or else the iteration, explains.

    0 if it is not significant.
    """
    if (kl := metrics.get("kl")) is not None:
        _, (rewards, lengths, kls) = aligned(reward, length, kl)
        cause = np.sqrt(np.maximum(kls, 0.0))
    else:
        iterations, (rewards, lengths) = aligned(reward, length)
        cause = iterations.astype(np.float64)
    if len(cause) < MIN_RELATED:
        return 0.0
    scaled = (cause - cause.mean()) / (cause.std() or 1.0)
    design = np.stack([np.ones_like(scaled), scaled, scaled**2], axis=1)
    rest = [values - design @ np.linalg.lstsq(design, values, rcond=None)[0] for values in (rewards, lengths)]
    size = float(np.linalg.norm(rest[0]) * np.linalg.norm(rest[1]))
    if size <= 1e-12 * max(1.0, float(np.linalg.norm(rewards) * np.linalg.norm(lengths))):
        return 0.0
    r = float(rest[0] @ rest[1]) / size
    t = r * np.sqrt((len(cause) - 4) / max(1e-12, 1 - r * r))
    return r if t > SIGNIFICANT_T else 0.0


def missing_end(metrics: PolicyMetrics) -> Evidence | None:
    text = "{now:.0%} of the responses have no end token, {start:.0%} at the start"
    return _outside(metrics, "missing_end", lambda part: part > bands.MISSING_END_HIGH, text)


def saturated_reward(metrics: PolicyMetrics) -> Evidence | None:
    if (series := metrics.get("reward_std")) is None:
        return None
    limit = max(bands.REWARD_SATURATED * series.start, 1e-6)
    text = "standard deviation of the reward {now:.3g}, {start:.3g} at the start"
    return _evidence(series, span_outside(series, lambda std: std < limit, after=WINDOW), text)


def collapsed_entropy(metrics: PolicyMetrics) -> Evidence | None:
    if (series := metrics.get("entropy")) is None:
        return None
    limit = bands.ENTROPY_COLLAPSED * series.start
    text = "entropy {now:.3g} nats a token, {start:.3g} at the start"
    return _evidence(series, span_outside(series, lambda entropy: entropy < limit, after=WINDOW), text)


def clip_fraction_high(metrics: PolicyMetrics) -> Evidence | None:
    text = "clip fraction {now:.2f}, highest {high:.2f}"
    return _outside(metrics, "clip_fraction", lambda part: part > bands.CLIP_FRACTION_HIGH, text)


def sampler_gap(metrics: PolicyMetrics) -> Evidence | None:
    """The first iteration samples with the weights that are trained, so its gap shows what rounding gives."""
    series = metrics.get("sampler_gap")
    if series is None or not len(series.values):
        return None
    limit = min(max(bands.SAMPLER_GAP_GROWN, 2 * float(series.values[0])), bands.SAMPLER_GAP_HIGH)
    return _outside(
        metrics, "sampler_gap", lambda gap: gap > limit, "log-probabilities differ by {now:.3g} nats a token"
    )


def first_ratio(metrics: PolicyMetrics) -> Evidence | None:
    return _counted(metrics.get("first_ratio_error"), bands.MAX_RATIO_ERROR, "ratio off by up to {high:.3g}")


def nan_rewards(metrics: PolicyMetrics) -> Evidence | None:
    """Episodes without a valid reward, and iterations whose mean reward is not a number."""
    if (series := metrics.get("nan_rewards")) is not None:
        return _counted(series, 0.0, "{total:.0f} rewards in {n} of {of} iterations")
    kl, reward = metrics.get("kl"), metrics.get("reward")
    if kl is None or reward is None:
        return None
    lost = IterationSeries(kl.iterations, np.asarray(~np.isin(kl.iterations, reward.iterations), dtype=np.float64))
    return _counted(lost, 0.0, "no mean reward in {n} of {of} iterations")


def forgetting(metrics: PolicyMetrics) -> Evidence | None:
    if (series := metrics.get("ptx_loss")) is None:
        return None
    limit = series.start + bands.PTX_RISE_HIGH
    text = "pre-training loss {now:.4g} nats a token, {start:.4g} at the start"
    return _evidence(series, span_outside(series, lambda loss: loss > limit, after=WINDOW), text)


def over_optimisation(metrics: PolicyMetrics) -> Evidence | None:
    """The gold reward has fallen from its peak by more than noise, while the trained reward has not."""
    proxy, gold = metrics.get("reward"), metrics.get("gold_reward")
    if proxy is None or gold is None:
        return None
    iterations, (proxies, golds) = aligned(proxy, gold)
    n = len(iterations)
    width = max(5, n // 10)
    if n < MIN_RELATED:
        return None
    smooth, proxy_smooth = running_mean(golds, width), running_mean(proxies, width)
    peak = int(np.argmax(smooth))
    end, error = float(golds[-width:].mean()), float(np.std(golds - smooth)) * np.sqrt(2 / width)
    risen = float(proxies[-width:].mean()) > proxy_smooth[peak]
    if n - 1 - peak < width or smooth[peak] - end <= NOISE_LIMIT * error or not risen:
        return None
    text = (
        f"gold reward {smooth[peak]:.3g} at its peak, {end:.3g} now; "
        f"trained reward {proxy_smooth[peak]:.3g} then, {proxies[-width:].mean():.3g} now"
    )
    return Evidence(Span(int(iterations[peak]), int(iterations[-1]), lasting=True), text)


def _outside(
    metrics: PolicyMetrics,
    name: str,
    broken: Callable[[Values], np.ndarray],
    text: str,
    *,
    after: int = 0,
    least: int = MIN_SPAN,
) -> Evidence | None:
    series = metrics.get(name)
    if series is None:
        return None
    return _evidence(series, span_outside(series, broken, after=after, least=least), text)


def _evidence(series: IterationSeries, span: Span | None, text: str) -> Evidence | None:
    """Fill in `now` (the median at the span's end), `start`, and the extremes inside the span."""
    if span is None:
        return None
    inside = series.values[(series.iterations >= span.first) & (series.iterations <= span.last)]
    now = float(np.median(inside[-WINDOW:]))
    return Evidence(span, text.format(now=now, start=series.start, low=inside.min(), high=inside.max()))


def _counted(series: IterationSeries | None, limit: float, text: str) -> Evidence | None:
    """For faults of which one iteration is enough."""
    if series is None or not (over := series.values > limit).any():
        return None
    found, values = series.iterations[over], series.values[over]
    span = Span(int(found[0]), int(found[-1]), bool(over[-1]))
    facts = {"high": values.max(), "total": values.sum(), "n": int(over.sum()), "of": len(series.values)}
    return Evidence(span, text.format(**facts))
