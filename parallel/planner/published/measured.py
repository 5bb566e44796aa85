"""The measured time of a published row: its metric and unit as seconds of a step."""

import math
import re

from gpt.errors import ConfigError
from parallel.planner.hardware.tables import Cluster
from parallel.planner.published.cluster import UNKNOWN
from parallel.planner.step_time.job import Job

_TIMES = {"s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3, "millisecond": 1e-3, "milliseconds": 1e-3}
_TIMES |= {"min": 60.0, "minute": 60.0, "minutes": 60.0, "h": 3600.0, "hour": 3600.0, "hours": 3600.0}
_TOKENS = {"tok/s": 1.0, "ktok/s": 1e3, "mtok/s": 1e6}
_SAMPLES = {"sample/s": 1.0, "seq/s": 1.0}
_FLOPS = {"tflop/s": 1.0, "gflop/s": 1e-3, "pflop/s": 1e3}
# the units of a metric; without one, the first of them
METRICS = {
    "iter_time": _TIMES,
    "tokens_per_s_per_gpu": _TOKENS,
    "tokens_per_s": _TOKENS,
    "samples_per_s_per_gpu": _SAMPLES,
    "samples_per_s": _SAMPLES,
    "tflops_per_gpu": _FLOPS,
    "mfu": {"fraction": 1.0, "%": 0.01, "percent": 0.01},
}
# "k tokens per second per GPU" is "ktok/s": how programs write a rate
_SPELLINGS = (
    (r"\s|model|hardware", ""),
    (r"(/|per)(gpu|device|chip|rank)s?", ""),
    (r"tokens?", "tok"),
    (r"samples?", "sample"),
    (r"seq(uence)?s?", "seq"),
    (r"flop/?s?(?=$|/)", "flop/s"),
    (r"(/|per)s(ec(ond)?s?)?$", "/s"),
    (r"(/s)+$", "/s"),
)


def measured_seconds(row: dict[str, str], job: Job, cluster: Cluster) -> float:
    """Seconds of a row's step. Rates of FLOPs are converted by the row's own convention.

    The row's metric is one of METRICS. ConfigError: its value or its unit is invalid.
    """
    metric, value = row["metric"], _value(row["value"]) * _unit(row)
    if metric == "iter_time":
        return value
    if metric.endswith("per_gpu"):
        value *= job.world_size
    if metric.startswith("tokens"):
        return job.tokens / value
    if metric.startswith("samples"):
        return job.tokens / job.seq_len / value
    if metric == "mfu":
        value *= job.world_size * cluster.gpu.peak * (0.01 if value > 1 else 1.0)
    return _flops(row, job) / (value * 1e12)


def _value(text: str) -> float:
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError(f"value {text[:100]} is invalid: must be a number above 0")
    return value


def _unit(row: dict[str, str]) -> float:
    """What one of the row's unit is, in the metric's first unit."""
    given, known = (row.get("unit") or "").lower(), METRICS[row["metric"]]
    if given in UNKNOWN:
        return 1.0
    unit = given
    if known is not _TIMES:
        for spelling, usual in _SPELLINGS:
            unit = re.sub(spelling, usual, unit)
    if unit not in known:
        raise ConfigError(
            f"unit {given[:100]} is invalid with metric {row['metric']}. Use {', '.join(known)} or leave it empty"
        )
    return known[unit]


def _flops(row: dict[str, str], job: Job) -> float:
    """FLOPs of a step by the row's convention: those of the hardware include the recomputed forward."""
    h, layers, s, v = job.model.d_model, job.model.n_layers, job.seq_len, job.model.padded_vocab_size
    if "hardware" in (row.get("flops_convention") or "").lower():
        return 96 * layers * h * h * (1 + s / (6 * h) + v / (16 * layers * h)) * job.tokens
    if job.model.activation == "gelu" and job.model.ff_width == 4 * h and job.model.kv_heads == job.model.n_heads:
        return 72 * layers * h * h * (1 + s / (6 * h) + v / (12 * layers * h)) * job.tokens
    return job.flops
