"""Compare predictions with published runs: errors by source, coverage of intervals, order inside families."""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from parallel.planner.published.rows import PublishedRun
from parallel.planner.step_time.job import Job
from parallel.planner.step_time.step import INTERVAL

CALIBRATED_SPREAD = 0.07  # of log(measured / predicted) after one run has scaled it: on the pairs of published rows


@dataclass(frozen=True)
class Comparison:
    """One published run and its prediction, in seconds a step.

    `doubt`: half of the log ratio between the slowest and the fastest reading of a doubtful row.
    """

    run: PublishedRun
    job: Job
    predicted: float
    doubt: float = 0.0

    @property
    def error(self) -> float:
        """Relative error: positive if the prediction is too slow."""
        return self.predicted / self.run.seconds - 1

    @property
    def covered(self) -> bool:
        """Whether the 90% interval of the prediction holds the measured time."""
        return abs(math.log(self.predicted / self.run.seconds)) <= INTERVAL * self.run.stack.spread + self.doubt


@dataclass(frozen=True)
class ErrorSummary:
    """Absolute relative errors of some predictions."""

    count: int
    median: float
    p90: float


def compare(runs: Sequence[PublishedRun]) -> list[Comparison]:
    """Predict each run from its row alone."""
    found = []
    for run in runs:
        seconds = [each for _, each in run.readings(run.stack)]
        doubt = math.log(max(seconds) / min(seconds)) / 2
        found.append(Comparison(run, *run.fastest(run.stack), doubt=doubt))
    return found


def summary(errors: Sequence[float]) -> ErrorSummary:
    """Median and 90th percentile (the smallest error that at least 90% do not exceed) of absolute errors."""
    ordered = sorted(abs(error) for error in errors)
    return ErrorSummary(len(ordered), statistics.median(ordered), ordered[math.ceil(0.9 * len(ordered)) - 1])


def covering_spread(errors: Sequence[float]) -> float:
    """The smallest spread whose 90% intervals hold at least 90% of the relative errors: a deviation of logarithms."""
    ordered = sorted(abs(math.log1p(error)) for error in errors)
    return ordered[math.ceil(0.9 * len(ordered)) - 1] / INTERVAL


def calibrated_errors(comparisons: Sequence[Comparison]) -> list[float]:
    """Errors after one run has scaled another of its stack, GPU and precision: of every ordered pair."""
    groups: dict[tuple[str, str, str], list[Comparison]] = {}
    for each in comparisons:
        run = each.run
        groups.setdefault((run.stack.name, run.cluster.gpu.name, each.job.precision), []).append(each)
    pairs = (pair for group in groups.values() for pair in itertools.permutations(group, 2))
    return [other.predicted * known.run.seconds / known.predicted / other.run.seconds - 1 for known, other in pairs]


def calibrated_coverage(comparisons: Sequence[Comparison]) -> float | None:
    """Share of the pairs of `calibrated_errors` in the 90% interval of a calibrated plan; None without pairs."""
    errors = calibrated_errors(comparisons)
    inside = [abs(math.log(1 + error)) <= INTERVAL * CALIBRATED_SPREAD for error in errors]
    return sum(inside) / len(inside) if inside else None


def coverage(comparisons: Sequence[Comparison]) -> float:
    """Share of the runs whose measured time lies in the 90% interval."""
    return sum(each.covered for each in comparisons) / len(comparisons)


def kendall_tau(comparisons: Sequence[Comparison]) -> float | None:
    """Kendall's tau of GPU-seconds a step over all pairs of a family; None without pairs.

    A family has one source, model, GPU, precision, sequence length and global batch: it varies only the layout. Pairs
    that differ by less than 1% in reality have no order.
    """
    families: dict[object, list[Comparison]] = {}
    for each in comparisons:
        job, run = each.job, each.run
        key = (run.source, run.cluster.gpu.name, job.model, job.precision, job.seq_len, job.tokens)
        families.setdefault(key, []).append(each)
    agree = []
    for a, b in (pair for family in families.values() for pair in itertools.combinations(family, 2)):
        real = math.log(_gpu_seconds(a, a.run.seconds) / _gpu_seconds(b, b.run.seconds))
        expected = math.log(_gpu_seconds(a, a.predicted) / _gpu_seconds(b, b.predicted))
        if abs(real) >= 0.01:
            agree.append(1 if real * expected > 0 else -1)
    return sum(agree) / len(agree) if agree else None


def _gpu_seconds(each: Comparison, seconds: float) -> float:
    return seconds * each.job.world_size
