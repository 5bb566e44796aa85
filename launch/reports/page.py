"""The report of a training run as one self-contained HTML page: figures, plots, time, tables.

The page has no script and needs no network. Everything that comes from the run's files is escaped.
"""

from collections.abc import Mapping
from html import escape

from gpt.telemetry.goodput import NAMES, Account
from gpt.telemetry.screen import human_count
from launch.reports.facts import headline, meaning_of, seconds_text, status, time_text
from launch.reports.memory import OF_MACHINE, OF_RANK
from launch.reports.plots import Mark, PlotLine, figure
from launch.reports.policy_page import policy_part
from launch.reports.style import TIME_COLOURS, run_page
from launch.reports.tables import checkpoints_part, events_part, prediction_part, processes_part
from launch.runs.history import RunHistory
from launch.runs.metrics_takes import STEP_TOKENS
from launch.runs.series import runs_without_gaps

MAX_LOST = 40  # superseded attempts that are drawn; the newest
VALIDATION_COLOURS = 6  # s1 to s6; s0 is the training loss


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
        prediction_part(history),
        *(_time(history.account) if history.account is not None else []),
        events_part(history),
        checkpoints_part(history),
        processes_part(history.account.processes) if history.account is not None else "",
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
    (unit, memory), (unit_used, used) = _memory(history, OF_RANK), _memory(history, {OF_MACHINE: "in use"})
    figures = [
        figure(title, lines, marks=marks, steps=steps, number=number, from_zero=from_zero)
        for title, lines, number, from_zero in (
            ("Loss, nats a token", _loss_lines(history), _plain, False),
            ("Gradient norm, before clipping", _lines(history, "gradient_norm"), _plain, False),
            ("Learning rate", _lines(history, "learning_rate"), _scientific, True),
            ("Tokens a second", _lines(history, "tokens_per_s"), human_count, True),
            ("Model FLOP utilisation", _lines(history, "mfu"), _percent, True),
            (f"Memory of the main rank, {unit}", memory, _plain, True),
            (f"Memory in use on its machine, {unit_used}", used, _plain, True),
            ("Batch, tokens a step", _batch_lines(history), human_count, True),
            ("Goodput since the start of the run", _lines(history, "goodput"), _percent, True),
        )
        if lines
    ]
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


def _lines(history: RunHistory, name: str) -> list[PlotLine]:
    """A metric, drawn over its superseded parts."""
    if name not in history.metrics:
        return []
    lost = [part for take in history.superseded if name in take for part in runs_without_gaps(take[name])]
    return [
        *(PlotLine("repeated later", series, "lost") for series in lost[-MAX_LOST:]),
        PlotLine(name, history.metrics[name], "s0"),
    ]


def _loss_lines(history: RunHistory) -> list[PlotLine]:
    names = [name for name in history.metrics if name.startswith("validation/") and name.endswith("/loss")]
    training = [PlotLine("training", line.series, line.colour) if line.colour == "s0" else line
                for line in _lines(history, "loss")]  # fmt: skip
    return training + [
        PlotLine(name.removesuffix("/loss"), history.metrics[name], f"s{i}", dots=True)
        for i, name in enumerate(names[:VALIDATION_COLOURS], 1)
    ]


def _batch_lines(history: RunHistory) -> list[PlotLine]:
    """Tokens of each step: its speed times its duration."""
    return [PlotLine("batch", history.metrics[STEP_TOKENS], "s0")] if STEP_TOKENS in history.metrics else []


def _memory(history: RunHistory, names: Mapping[str, str]) -> tuple[str, list[PlotLine]]:
    """Metrics of memory in GiB or MiB, chosen by their maximum, so that the axis has round numbers."""
    lines = [
        PlotLine(line.name if line.colour == "lost" else title, line.series, line.colour if i == 0 else f"s{i}")
        for i, (name, title) in enumerate((name, title) for name, title in names.items() if name in history.metrics)
        for line in _lines(history, name)
        if i == 0 or line.colour != "lost"
    ]
    unit, size = (
        ("GiB", 2**30) if max((line.series.extremes[1].max() for line in lines), default=0) >= 2**30 else ("MiB", 2**20)
    )
    return unit, [PlotLine(line.name, line.series.scaled(1 / size), line.colour) for line in lines]


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


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"


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
        f"Goodput {account.goodput:.1%}: training steps that were kept, as a part of the wall time from the start of "
        "the first process to the last row of the ledger."
    )
    head = "<tr><th class=word>part</th><th>time</th><th>share</th></tr>"
    table = f"<div class=scroll><table>{head}{''.join(rows)}{total}</table></div>"
    return [f"<h2>Where the time went</h2><p class=note>{note}</p><div class=share>{''.join(bars)}</div>", table]
