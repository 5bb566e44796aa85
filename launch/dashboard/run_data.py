"""The JSON that a page gets of a run: facts, configuration, events, samples and series."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt.adapters.config import adapter_of, train_flops_per_token
from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from gpt.post_training.analysis.bands import BANDS
from gpt.post_training.analysis.diagnosis import diagnose
from launch.config.recipe import build, without_none
from launch.dashboard.feed import RunFeed, tokens_of
from launch.reports.facts import headline, meaning_of, status, text_of, time_text, word_of
from launch.reports.policy_health import PREFIXES, fault_record, policy_metrics, policy_prefix
from launch.reports.tables import layout_of, settings_of
from launch.runs.figures import RUN_FIGURES, RunFigure, label_of
from launch.runs.history import RunHistory
from launch.runs.sampled_lines import sampled_texts
from launch.runs.series import Series

POLICY_FIGURES = tuple(RunFigure(band.title, rf"({'|'.join(PREFIXES)}){band.metric}") for band in BANDS)
MAX_EVENTS = 2000
SAMPLES = 200  # spread over the run, besides the newest
DIGITS = 6  # of a value in a series: a picture shows fewer


def run_data(feed: RunFeed, *, now: float) -> dict[str, Any]:
    """All of a run but its series. `now`: seconds since 1970. Texts are plain: the page escapes them."""
    history = feed.history
    names = sorted(history.metrics)
    return {
        "name": history.directory.resolve().name,
        "directory": str(history.directory),
        "version": feed.version,
        "status": status(history, now=now),
        "problems": history.problems,
        "tiles": headline(history),
        "config": dict(settings_of(history)),
        "layout": layout_of(history),
        "metrics": names,
        "figures": [
            {"title": one.title, "names": one.names(names), "number": one.number, "from_zero": one.from_zero}
            for one in (*POLICY_FIGURES, *RUN_FIGURES)
        ],
        "labels": {name: label_of(name) for name in names},
        "bands": bands_of(history),
        "faults": [fault_record(fault) for fault in diagnose(policy_metrics(history.metrics))],
        "events": events_of(history),
        "samples": [
            {key: record[key] for key in ("step", "prompt", "text")}
            for record in sampled_texts(feed.directory, SAMPLES)
        ],
        "checkpoints": [{"step": stored.step, "bytes": stored.size_bytes} for stored in history.checkpoints],
        "clock": feed.clock,
        "tokens": tokens_of(history),
        "flops_per_token": flops_per_token(history),
    }


def series_data(series: Series | None) -> dict[str, list[float]]:
    """A series for a plot; `low` and `high` only where points stand for several values."""
    if series is None:
        return {"step": [], "value": []}
    found = {"step": series.steps.tolist(), "value": _rounded(series.values)}
    if series.low is not None and series.high is not None:
        found |= {"low": _rounded(series.low), "high": _rounded(series.high)}
    return found


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]


def events_of(history: RunHistory) -> list[dict[str, Any]]:
    """The newest events, oldest first. `about` is the step at which a plot marks the event."""
    kept = [event for event in history.events if event.kind != "checkpoint_estimate"][-MAX_EVENTS:]
    return [
        {
            "step": event.step,
            "about": event.about_step,
            "time": time_text(event.time),
            "kind": word_of(event),
            "meaning": meaning_of(event.kind),
            "text": text_of(event),
        }
        for event in kept
    ]


def bands_of(history: RunHistory) -> dict[str, tuple[float | None, float | None]]:
    """The healthy bands of a policy's metrics as values of this run; None: no bound."""
    prefix, metrics = policy_prefix(history.metrics), policy_metrics(history.metrics)
    return {f"{prefix}{band.metric}": band.bounds(metrics[band.metric]) for band in BANDS if band.metric in metrics}


def flops_per_token(history: RunHistory) -> float:
    """Floating-point operations of training for one token; 0 if the run's configuration cannot be read."""
    model, seq_len = history.config.get("model"), history.setting("data", "seq_len")
    try:
        given = without_none(model) if isinstance(model, dict) else {}
        config = build(ModelConfig, given, where="model")
        adapter = adapter_of({"config": history.config})
        return train_flops_per_token(config, adapter, seq_len if isinstance(seq_len, int) else config.n_ctx)
    except (ConfigError, TypeError, ValueError):
        return 0.0
