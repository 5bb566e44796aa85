"""The report of a training run as one self-contained HTML page: figures, plots, time, tables.

The page has no script and needs no network. Everything that comes from the run's files is escaped.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from html import escape

from gpt.telemetry.goodput import NAMES, Account
from gpt.telemetry.screen import human_count
from launch.reports.facts import headline, meaning_of, seconds_text, status, time_text
from launch.reports.plots import Mark, PlotLine, figure
from launch.reports.policy_health import policy_prefix
from launch.reports.policy_page import policy_part
from launch.reports.style import TIME_COLOURS, run_page
from launch.reports.tables import (
    checkpoints_part,
    events_part,
    layout_part,
    prediction_part,
    processes_part,
    samples_part,
    settings_part,
)
from launch.runs.figures import RUN_FIGURES, Number, RunFigure, label_of
from launch.runs.history import RunHistory
from launch.runs.series import runs_without_gaps

MAX_LOST = 40  # superseded attempts that are drawn; the newest
MAX_LINES = 7  # of a figure, in the colours s0 to s6
DOTTED = ("validation/", "few_shot/")  # metrics with few points


def report_page(history: RunHistory, *, now: float) -> str:
    """The page's HTML. `now`: seconds since 1970, to show how long ago the run wrote its last file."""
    name = history.directory.resolve().name
    body = [
        f"<h1>{escape(name)}</h1>",
        f"<p class=note>{escape(str(history.directory))} &middot; {escape(status(history, now=now))} &middot; "
        f"page written at {escape(time_text(now))}</p>",
        *(f"<p class=problem>{escape(problem)}</p>" for problem in history.problems),
        _tiles(history),
        policy_part(history, event_marks(history)),
        _plots(history),
        samples_part(history) if policy_prefix(history.metrics) is None else "",
        prediction_part(history),
        *(_time(history.account) if history.account is not None else []),
        events_part(history),
        checkpoints_part(history),
        processes_part(history.account.processes) if history.account is not None else "",
        layout_part(history),
        settings_part(history),
    ]
    return run_page(f"{name}: training run", "\n".join(part for part in body if part))


def _tiles(history: RunHistory) -> str:
    tiles = [
        f"<div><span>{escape(what)}</span><b>{escape(value)}</b><span>{escape(note)}</span></div>"
        for what, value, note in headline(history)
    ]
    return f"<div class=tiles>{''.join(tiles)}</div>"


# ---- plots -----------------------------------------------------------------------------------------------------------


def _plots(history: RunHistory) -> str:
    found = list(history.metrics.values())
    if not found:
        return ""
    steps = (int(min(series.steps[0] for series in found)), history.last_step)
    marks = event_marks(history)
    figures = [_figure(history, one, marks, steps) for one in RUN_FIGURES if one.names(history.metrics)]
    kinds = dict.fromkeys(mark.kind for mark in marks)
    key = "".join(f"<span class=key><i class={kind}></i>{_KIND_WORDS[kind]}</span>" for kind in kinds)
    if history.superseded:
        key += "<span class=key><i class=lost></i>lost steps, which were repeated</span>"
    note = f"<p class=note>Horizontal axis: steps. {key}</p>"
    return f"<h2>Training</h2>{note}<div class=plots>{''.join(figures)}</div>"


_KIND_WORDS = {
    "fault": "fault",
    "warning": "spike, rewind or warning",
    "restart": "restart",
    "checkpoint": "checkpoint saved",
    "note": "other event",
}


def _figure(history: RunHistory, one: RunFigure, marks: Sequence[Mark], steps: tuple[int, int]) -> str:
    """A figure of the metrics that the run has, over the parts of the first one that were repeated later."""
    names = one.names(history.metrics)
    unit, size = _memory_unit(history, names) if one.number == "memory" else ("", 1)
    lost = [part for take in history.superseded if names[0] in take for part in runs_without_gaps(take[names[0]])]
    lines = [PlotLine("repeated later", series.scaled(1 / size), "lost") for series in lost[-MAX_LOST:]] + [
        PlotLine(label_of(name), history.metrics[name].scaled(1 / size), f"s{i}", dots=name.startswith(DOTTED))
        for i, name in enumerate(names[:MAX_LINES])
    ]
    return figure(
        f"{one.title}, {unit}" if unit else one.title,
        lines,
        marks=marks,
        steps=steps,
        number=NUMBERS[one.number],
        from_zero=one.from_zero,
        note=f"{len(names) - MAX_LINES:,} more, on the live page" if len(names) > MAX_LINES else "",
    )


def _memory_unit(history: RunHistory, names: Sequence[str]) -> tuple[str, int]:
    """GiB or MiB, chosen by the maximum, so that the axis has round numbers."""
    largest = max(history.metrics[name].extremes[1].max() for name in names)
    return ("GiB", 2**30) if largest >= 2**30 else ("MiB", 2**20)


def event_marks(history: RunHistory) -> list[Mark]:
    """Marks for the events that have a step, and for the restarts in the time ledger that have no event."""
    marks = [
        Mark(step, meaning_of(event.kind), f"step {step:,}: {event.text or event.kind}")
        for event in history.events
        if event.kind != "checkpoint_estimate" and (step := event.about_step) is not None
    ]
    known = {mark.step for mark in marks if mark.kind == "restart"}
    for process in history.account.processes[1:] if history.account is not None else []:
        if process.from_step is not None and process.from_step not in known:
            marks.append(Mark(process.from_step, "restart", f"step {process.from_step:,}: continued in a new process"))
    order = list(_KIND_WORDS)
    return sorted(marks, key=lambda mark: order.index(mark.kind), reverse=True)  # faults last, so that they are on top


def _plain(value: float) -> str:
    return f"{value:.4g}"


def _scientific(value: float) -> str:
    return f"{value:.1e}".replace("e-0", "e-") if value else "0"


def _count(value: float) -> str:
    return re.sub(r"\.?0+(?=[kMBT])|\.(?=[kMBT])", "", text) if "." in (text := human_count(value)) else text


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"


NUMBERS: Mapping[Number, Callable[[float], str]] = {
    "plain": _plain,
    "memory": _plain,
    "scientific": _scientific,
    "percent": _percent,
    "count": _count,
}


# ---- time ------------------------------------------------------------------------------------------------------------


def _time(account: Account) -> list[str]:
    wall_s, parts = account.wall_s or 1.0, {name: s for name, s in account.by_name.items() if s > 0}
    bars, rows = [], []
    for name, s in parts.items():
        share, colour = s / wall_s, TIME_COLOURS[name]
        label = f"{NAMES[name]} {share:.1%}"
        bars.append(
            f'<div style="width:{100 * share:.3f}%;background:{colour}{";padding:0" if share < 0.02 else ""}" '
            f'title="{escape(label)}">{escape(label) if share >= 0.0065 * len(label) else ""}</div>'
        )
        named = f"<i style='background:{colour}'></i>{escape(NAMES[name])}"
        rows.append(f"<tr><td class=word>{named}</td><td>{seconds_text(s)}</td><td>{share:.2%}</td></tr>")
    total = f"<tr><td class=word>wall time</td><td>{seconds_text(wall_s)}</td><td>100%</td></tr>"
    note = (
        f"Goodput {account.goodput:.1%}: steps that were kept, as a part of the wall time from the start of "
        "the first process to the last row of the ledger."
    )
    head = "<tr><th class=word>part</th><th>time</th><th>share</th></tr>"
    table = f"<div class=scroll><table>{head}{''.join(rows)}{total}</table></div>"
    return [f"<h2>Where the time went</h2><p class=note>{note}</p><div class=share>{''.join(bars)}</div>", table]
