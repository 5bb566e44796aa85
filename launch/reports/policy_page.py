"""The part of a run's page about a policy: faults in words, metrics with healthy bands, responses over time."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from gpt.post_training.analysis.bands import BANDS, OURS, HealthyBand
from gpt.post_training.analysis.diagnosis import PolicyFault, diagnose
from gpt.post_training.analysis.series import PolicyMetrics
from launch.reports.over_optimisation_plot import over_optimisation_part
from launch.reports.plots import Mark, PlotLine, figure
from launch.reports.policy_health import policy_metrics, policy_prefix
from launch.runs.history import RunHistory
from launch.runs.sampled_lines import sampled_texts

MAX_PROMPTS, MAX_VERSIONS = 6, 5
MAX_CHARACTERS = 4000  # of one response on the page
SAMPLED = 2000  # lines of samples.jsonl


def policy_part(history: RunHistory, marks: Sequence[Mark]) -> str:
    """The HTML of the part; empty if the run trains no policy."""
    prefix = policy_prefix(history.metrics)
    if prefix is None:
        return ""
    metrics = policy_metrics(history.metrics)
    parts = [
        "<h2>Policy</h2>",
        faults_list(diagnose(metrics)),
        _plots(history, metrics, prefix, marks),
        over_optimisation_part(metrics, history.directory),
        responses_part(history.directory),
    ]
    return "\n".join(part for part in parts if part)


def faults_list(faults: Sequence[PolicyFault]) -> str:
    """The faults as a list; a sentence if there is none."""
    if not faults:
        return "<p class=note>The metrics show no known fault.</p>"
    return f"<ul class=faults>{''.join(map(_fault, faults))}</ul>"


def _fault(fault: PolicyFault) -> str:
    symptom, lasting = fault.symptom, fault.evidence.span.lasting
    return (
        f"<li class={'fault' if lasting else 'note'}><b>{escape(symptom.name)}</b>{escape(fault.when)}"
        f"<p>{escape(fault.evidence.numbers)}.</p><p>{escape(symptom.advice)}</p>"
        f"<small>Rule: {escape(symptom.rule)}. Source: {escape(symptom.source)}.</small></li>"
    )


def _plots(history: RunHistory, metrics: PolicyMetrics, prefix: str, marks: Sequence[Mark]) -> str:
    found = [(band, history.metrics.get(prefix + band.metric)) for band in BANDS]
    shown = [(band, series) for band, series in found if series is not None]
    if not shown:
        return ""
    steps = (min(int(series.steps[0]) for _, series in shown), history.last_step)
    figures = [
        figure(
            band.title,
            [PlotLine(band.metric, series, "s0")],
            marks=[mark for mark in marks if mark.kind != "checkpoint"],
            steps=steps,
            number=lambda value: f"{value:.4g}",
            from_zero=False,
            healthy=band.bounds(metrics[band.metric]),
            note=_band_text(band),
        )
        for band, series in shown
    ]
    key = "<span class=key><i class=healthy></i>healthy</span>"
    note = f"<p class=note>Horizontal axis: steps. {key} Bands without a source are our choice.</p>"
    return f"{note}<div class=plots>{''.join(figures)}</div>"


def _band_text(band: HealthyBand) -> str:
    source = f" ({band.source})" if band.source != OURS else ""
    return f"healthy: {band.text}{source}" if band.text else ""


# ---- responses -------------------------------------------------------------------------------------------------------


def responses_part(directory: Path) -> str:
    """Responses to one prompt at several steps, side by side. Empty without samples of at least two steps."""
    versions: dict[str, dict[int, dict[str, Any]]] = {}
    for record in sampled_texts(directory, SAMPLED):
        versions.setdefault(record["prompt"], {})[record["step"]] = record
    several = {prompt: by_step for prompt, by_step in versions.items() if len(by_step) > 1}
    if not several:
        return ""
    rows = [
        f"<p class=prompted>{escape(prompt.strip()[:MAX_CHARACTERS]) or '(no prompt)'}</p>"
        f"<div class=versions>{''.join(_version(by_step[step]) for step in _spread(sorted(by_step)))}</div>"
        for prompt, by_step in list(several.items())[:MAX_PROMPTS]
    ]
    left_out = f" The first {len(rows)} of {len(several):,} prompts." if len(several) > len(rows) else ""
    note = f"<p class=note>Responses to the same prompt during training, the oldest on the left.{left_out}</p>"
    return f"<h2>Responses over time</h2>{note}{''.join(rows)}"


def _spread(steps: Sequence[int]) -> list[int]:
    """At most MAX_VERSIONS of the steps, evenly spread, with the first and the last."""
    n = min(len(steps), MAX_VERSIONS)
    return [steps[round(i * (len(steps) - 1) / (n - 1))] for i in range(n)]


def _version(record: dict[str, Any]) -> str:
    text = record["text"].removeprefix(record["prompt"]).strip()
    shown = text[:MAX_CHARACTERS] + (" ..." if len(text) > MAX_CHARACTERS else "")
    numbers = [
        f"{name} {record[name]:.3g}"
        for name in ("reward", "kl", "length")
        if isinstance(record.get(name), (int, float)) and abs(record[name]) < 1e30
    ]
    heading = f"<b>step {record['step']:,}</b> <span>{escape(', '.join(numbers))}</span>"
    return f"<div>{heading}<p>{escape(shown) or '(no text)'}</p></div>"
