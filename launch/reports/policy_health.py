"""The metrics of a run that trains a policy (PPO, GRPO), and what the doctor of `gpt.post_training` finds in them."""

from pathlib import Path
from typing import Any

import numpy as np

from gpt.post_training.analysis.diagnosis import PolicyFault, diagnose
from gpt.post_training.analysis.series import IterationSeries, PolicyMetrics
from launch.runs.history import METRICS, read_takes
from launch.runs.series import Series, Take, settle

PREFIXES = ("ppo/", "grpo/")


def policy_prefix(metrics: Take) -> str | None:
    """The prefix of the policy's metrics; None if the run trains none."""
    return next((prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in metrics)), None)


def policy_metrics(metrics: Take) -> PolicyMetrics:
    """The metrics of a policy without their prefix, by iteration. Empty if the run trains none.

    An iteration is the value of the metric `iteration` at the same step, or else the step.
    """
    prefix = policy_prefix(metrics)
    if prefix is None:
        return {}
    clock = metrics.get(f"{prefix}iteration")
    return {
        name.removeprefix(prefix): _by_iteration(series, clock)
        for name, series in metrics.items()
        if name.startswith(prefix) and name != f"{prefix}iteration"
    }


def _by_iteration(series: Series, clock: Series | None) -> IterationSeries:
    if clock is None:
        return IterationSeries(series.steps, series.values)
    iterations = np.rint(np.interp(series.steps, clock.steps, clock.values)).astype(np.int64)
    return IterationSeries(iterations, series.values)


def diagnosis_lines(run_directory: Path) -> list[str]:
    """One line for each fault of a policy's training, for the end of a run. Empty if there is none.

    Reads the run's metrics.jsonl. Rank 0 only; it communicates nothing.
    """
    metrics, _ = settle(read_takes(run_directory / METRICS, []))
    return [finding.text for finding in diagnose(policy_metrics(metrics))]


def fault_record(fault: PolicyFault) -> dict[str, Any]:
    """A fault for programs."""
    span, symptom = fault.evidence.span, fault.symptom
    return {
        "fault": symptom.name,
        "when": fault.when,
        "first_iteration": span.first,
        "last_iteration": span.last,
        "lasting": span.lasting,
        "numbers": fault.evidence.numbers,
        "advice": symptom.advice,
        "rule": symptom.rule,
        "source": symptom.source,
    }
