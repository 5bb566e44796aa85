"""The tables of a run's page: prediction, events, checkpoints, processes, samples, layout, configuration.

Everything that comes from files is escaped.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from gpt.telemetry.goodput import ProcessTime
from gpt.telemetry.screen import human_duration
from launch.reports.facts import (
    bytes_text,
    figure_text,
    meaning_of,
    news,
    seconds_text,
    start_up_medians,
    text_of,
    time_text,
    word_of,
)
from launch.runs.history import Event, RunHistory
from launch.runs.prediction import KeptPrediction, PredictedFigure, compared_figures
from launch.runs.sampled_lines import sampled_texts

MAX_ROWS = 200  # of a table: the newest ones
SHOWN_SAMPLES, MAX_SAMPLE = 8, 4000  # texts, and characters of one
MAX_COPIES, MAX_STAGES, MAX_SPLITS = 4, 16, 8  # ranks in the picture of a layout, along each axis


def prediction_part(history: RunHistory) -> str:
    """The table of the page; "" if the run kept no prediction."""
    kept = history.prediction
    if kept is None:
        return ""
    figures = compared_figures(history)
    rows = [
        f"<tr><td class=word>{escape(figure.name)}</td><td>{figure_text(figure.name, figure.predicted)}</td>"
        f"<td>{_interval(figure, kept)}</td><td>{figure_text(figure.name, figure.measured)}</td>"
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


def _interval(figure: PredictedFigure, kept: KeptPrediction) -> str:
    if figure.name != "step time":
        return "-"
    return f"{figure_text(figure.name, kept.low_s)} to {figure_text(figure.name, kept.high_s)}"


def events_part(history: RunHistory) -> str:
    shown = news(history)
    if not shown:
        return ""
    rows = [
        f"<tr><td class=word>{escape(time_text(event.time))}</td><td>{_step(event.step)}</td>"
        f"<td class=word><i class={meaning_of(event.kind)}></i>{escape(word_of(event))}</td>"
        f"<td class=text>{escape(text_of(event))}</td></tr>"
        for event in reversed(shown[-MAX_ROWS:])
    ]
    counts = ", ".join(f"{n:,} {kind}" for kind, n in Counter(map(word_of, shown)).most_common())
    names = ("when", "step", "kind", "what")
    table = _table(names, rows, len(shown), stacked=True)
    return f"<h2>Faults, warnings and restarts</h2><p class=note>{escape(counts)}</p>{table}"


def checkpoints_part(history: RunHistory) -> str:
    """The saves recorded as events, and the checkpoints on disk without an event."""
    stored = {entry.step: entry for entry in history.checkpoints}
    saves = [event for event in history.events if event.kind in ("checkpoint_saved", "checkpoint_failed")]
    entries: list[tuple[float, str]] = []
    for event in reversed(saves):  # newest first: if a repeated step was saved twice, the newer save is the one on disk
        step = event.about_step
        at = stored.pop(step, None) if event.kind == "checkpoint_saved" and step is not None else None
        state = "failed: " + event.text if event.kind == "checkpoint_failed" else "on disk" if at else "deleted"
        size = bytes_text(at.size_bytes) if at else _bytes_field(event)
        entries.append((event.time, _checkpoint_row(event.time, step, size, _seconds_field(event), state)))
    for entry in stored.values():
        size = bytes_text(entry.size_bytes)
        entries.append((entry.written_time, _checkpoint_row(entry.written_time, entry.step, size, "", "on disk")))
    if not entries:
        return ""
    failed = sum(event.kind == "checkpoint_failed" for event in saves)
    note = f"{len(entries) - failed:,} saved, {failed:,} failed, {len(history.checkpoints):,} on disk"
    rows = [row for _, row in sorted(entries, reverse=True)[:MAX_ROWS]]
    names = ("when", "step", "size", "took", "state")
    return f"<h2>Checkpoints</h2><p class=note>{note}</p>{_table(names, rows, len(entries))}"


def _checkpoint_row(at: float, step: int | None, size: str, took: str, state: str) -> str:
    return (
        f"<tr><td class=word>{escape(time_text(at))}</td><td>{_step(step)}</td><td>{escape(size)}</td>"
        f"<td>{escape(took)}</td><td class=text>{escape(state)}</td></tr>"
    )


def _bytes_field(event: Event) -> str:
    size = event.fields.get("bytes")
    return bytes_text(size) if isinstance(size, (int, float)) and 0 <= size < 1e30 else ""


def _seconds_field(event: Event) -> str:
    """The duration of a save, and for how long it stopped training."""
    parts = []
    for name, word in (("write_s", ""), ("stall_s", " training stopped")):
        s = event.fields.get(name)
        if isinstance(s, (int, float)) and 0 <= s < 1e30:
            parts.append(f"{seconds_text(s)}{word}")
    return ", ".join(parts)


def _table(names: Sequence[str], rows: Sequence[str], total: int, *, stacked: bool = False) -> str:
    """`total`: the number of rows before the oldest were left out. `stacked`: one row under another if narrow."""
    words = ("when", "started", "host", "kind", "what", "state")
    head = "".join(f"<th{' class=word' if name in words else ''}>{escape(name)}</th>" for name in names)
    left_out = f" The newest {len(rows):,} of {total:,}." if total > len(rows) else ""
    table = f"<table{' class=stacked' if stacked else ''}><tr>{head}</tr>{''.join(rows)}</table>"
    return f"<p class=note>Newest first.{left_out}</p><div class=scroll>{table}</div>"


def _step(step: int | None) -> str:
    return "" if step is None else f"{step:,}"


def _strip(processes: Sequence[ProcessTime]) -> str:
    """The processes as blocks along the wall time; in the gaps no process ran."""
    blocks, at = [], 0.0
    total = sum(process.down_s + process.elapsed_s for process in processes) or 1.0
    for i, process in enumerate(processes):
        at += process.down_s
        from_step = "?" if process.from_step is None else f"{process.from_step:,}"
        title = f"process {i + 1}: steps {from_step} to {process.step:,}, {human_duration(process.elapsed_s)}"
        blocks.append(
            f'<div class={"s5" if i % 2 else "s0"} style="left:{100 * at / total:.3f}%;'
            f'width:{100 * process.elapsed_s / total:.3f}%" title="{escape(title)}"></div>'
        )
        at += process.elapsed_s
    return f"<div class=strip>{''.join(blocks)}</div>"


def processes_part(processes: Sequence[ProcessTime]) -> str:
    parts = start_up_medians(processes)
    note = "Processes of the main rank. Down before: the time without a process."
    if parts:
        each = ", ".join(f"{name} {s:.2f} s" for name, s in parts.items())
        note += f" Medians from start to first step: {each}; together {sum(parts.values()):.2f} s."
    rows = []
    for i, process in reversed(list(enumerate(processes))[-MAX_ROWS:]):
        steps = "no step" if process.from_step is None else f"{process.from_step:,} to {process.step:,}"
        start = sum(process.start_up.values())
        first = "" if process.first_step_s is None else f"{process.first_step_s:.2f} s"
        rows.append(
            f"<tr><td>{i + 1:,}</td><td class=word>{escape(time_text(process.started_time))}</td>"
            f"<td class=word>{escape(process.host)}</td><td>{process.world_size:,}</td><td>{steps}</td>"
            f"<td>{seconds_text(process.down_s) if i else ''}</td><td>{start:.2f} s</td><td>{first}</td>"
            f"<td>{seconds_text(process.elapsed_s)}</td></tr>"
        )
    names = ("", "started", "host", "ranks", "steps", "down before", "start-up", "first step", "ran for")
    strip = _strip(processes) if len(processes) > 1 else ""
    return f"<h2>Processes</h2><p class=note>{escape(note)}</p>{strip}{_table(names, rows, len(processes))}"


# ---- what the run was started with -----------------------------------------------------------------------------------


def settings_of(history: RunHistory) -> list[tuple[str, str]]:
    """The versions and the configuration of a run: keys with dots, and their values as text."""
    return flat({"software": history.software}) + flat(history.config)


def flat(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """The keys of a configuration with dots, and their values as text."""
    found: list[tuple[str, str]] = []
    for key, value in table.items():
        if isinstance(value, dict):
            found += flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", "" if value is None else str(value)))
    return found


def settings_part(history: RunHistory) -> str:
    """All settings, folded; commit and versions stand above them. "" if the run kept neither."""
    settings = settings_of(history)
    if not settings:
        return ""
    rows = [f"<tr><td class=word>{escape(key)}</td><td class=text>{escape(value)}</td></tr>" for key, value in settings]
    versions = ", ".join(f"{key} {value}" for key, value in flat(history.software))
    note = f"<p class=note>{escape(versions)}</p>" if versions else ""
    count = f"{len(settings):,} setting{'' if len(settings) == 1 else 's'}"
    table = f"<div class=scroll><table>{''.join(rows)}</table></div>"
    return f"<h2>Configuration</h2>{note}<details><summary>{count}</summary>{table}</details>"


def layout_of(history: RunHistory) -> dict[str, int]:
    """Sizes of the three axes; those that a damaged or older configuration lacks are 1."""
    sizes = {axis: history.setting("parallel", axis) for axis in ("tensor", "pipeline")}
    whole = {axis: size if isinstance(size, int) and 1 <= size <= 4096 else 1 for axis, size in sizes.items()}
    ranks = history.account.processes[-1].world_size if history.account and history.account.processes else 0
    model = whole["tensor"] * whole["pipeline"]
    return {**whole, "data": max(1, ranks // model), "ranks": ranks or model}


def layout_part(history: RunHistory) -> str:
    """The ranks as a picture: a row for each copy of the model, a column for each part of it."""
    if not history.config:
        return ""
    layout = layout_of(history)
    tensor, pipeline, data, ranks = (layout[name] for name in ("tensor", "pipeline", "data", "ranks"))
    rows, stages, splits = min(data, MAX_COPIES), min(pipeline, MAX_STAGES), min(tensor, MAX_SPLITS)
    cells = [
        "".join(f"<td>{(p * data + d) * tensor + t}</td>" for p in range(stages) for t in range(splits))
        for d in range(rows)
    ]
    cut = " (a part of it)" if (rows, stages, splits) != (data, pipeline, tensor) else ""
    note = "Each cell is a rank: a row for each copy of the model, a column for each part of it."
    return (
        f"<h2>Layout</h2><p class=note>{note}</p><div class=layout><h3>{ranks:,} rank{'' if ranks == 1 else 's'}</h3>"
        f"<p class=note>tensor {tensor} x pipeline {pipeline} x data {data}{cut}</p>"
        f"<div class=scroll><table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table></div></div>"
    )


def samples_part(history: RunHistory) -> str:
    """Texts of a few steps: the newest, and others spread over the run. The prompts take turns."""
    by_step: dict[int, list[dict[str, Any]]] = {}
    for record in sampled_texts(history.directory, MAX_ROWS):
        by_step.setdefault(record["step"], []).append(record)
    every = -(-len(by_step) // SHOWN_SAMPLES) or 1
    shown = list(by_step.items())[::-1][::every][::-1]
    if not shown:
        return ""
    texts = [_sample(step, records[n % len(records)]) for n, (step, records) in enumerate(shown)]
    note = "Texts that the model wrote during training, spread over the run; the prompt comes first."
    return f"<h2>Samples</h2><p class=note>{note}</p>{''.join(texts)}"


def _sample(step: int, record: Mapping[str, Any]) -> str:
    prompt, written = record["prompt"], record["text"].removeprefix(record["prompt"])
    more = " ..." if len(written) > MAX_SAMPLE else ""
    text = f"<b>{escape(prompt[:MAX_SAMPLE])}</b>{escape(written[:MAX_SAMPLE])}{more}"
    return f"<h3>step {step:,}</h3><div class='sample s0'>{text}</div>"
