"""The planner's prediction of a run beside the measured figures: notes, a table of the page, JSON."""

from html import escape
from typing import Any

from launch.runs.history import RunHistory
from launch.runs.prediction import KeptPrediction, PredictedFigure, compared_figures


def against_prediction(figure: PredictedFigure) -> str:
    """The predicted value of a figure, and how the measured one compares with it."""
    outside = {None: "", True: ", inside the 90% interval", False: ", outside the 90% interval"}[figure.inside]
    return f"predicted {_value(figure.name, figure.predicted)}, measured {figure.ratio:.2f} times{outside}"


def prediction_part(history: RunHistory) -> str:
    """The table of the page; "" if the run kept no prediction."""
    kept = history.prediction
    if kept is None:
        return ""
    figures = compared_figures(history)
    rows = [
        f"<tr><td class=word>{escape(figure.name)}</td><td>{_value(figure.name, figure.predicted)}</td>"
        f"<td>{_interval(figure, kept)}</td><td>{_value(figure.name, figure.measured)}</td>"
        f"<td>{figure.ratio:.3f}</td></tr>"
        for figure in figures
    ]
    note = (
        f"By <code>triaxial plan</code> when the run started: stack {escape(kept.stack)} on {escape(kept.device)}. "
        f"Peak memory is that of the main rank"
    )
    if kept.base_bytes:
        note += f", with the {kept.base_bytes / 2**20:,.0f} MiB that its process held before it had a model"
    note += ". The next plan uses the ratio of step times: <code>triaxial plan --calibrate</code> with this run."
    if not figures:
        note += " No step of the full batch is measured yet."
        return f"<h2>Prediction and reality</h2><p class=note>{note}</p>"
    head = "<tr><th class=word></th><th>predicted</th><th>90% interval</th><th>measured</th><th>ratio</th></tr>"
    table = f"<div class=scroll><table>{head}{''.join(rows)}</table></div>"
    return f"<h2>Prediction and reality</h2><p class=note>{note}</p>{table}"


def prediction_json(history: RunHistory) -> dict[str, Any] | None:
    """The prediction, and measured figures with their ratio, in seconds, bytes and shares of one."""
    if history.prediction is None:
        return None
    measured = {
        figure.name.replace(" ", "_").lower(): {"measured": figure.measured, "ratio": figure.ratio}
        for figure in compared_figures(history)
    }
    return {**history.prediction.as_json(), "measured": measured}


def _interval(figure: PredictedFigure, kept: KeptPrediction) -> str:
    if figure.name != "step time":
        return "-"
    return f"{_value(figure.name, kept.low_s)} to {_value(figure.name, kept.high_s)}"


def _value(name: str, value: float) -> str:
    if name == "MFU":
        return f"{value:.1%}"
    if name == "peak memory":
        return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"
    return f"{value:.3g} s"
