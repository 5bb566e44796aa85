"""`parity.html`: the verdict, the picture, every layout, and the gradients that differ most. No script, no network."""

import itertools
import math
from collections.abc import Iterable
from html import escape
from pathlib import Path

from gpt.telemetry.screen import counted
from launch.parity.plot import draw_differences
from launch.parity.report import ParityReport, Row, cells, headers, largest, row_failures, verdict
from launch.reports.style import run_page

_SHOWN_PARAMETERS = 8  # of each layout
_STYLE = """<style>
tr.failed td { color: var(--fault) } details { margin: .6rem 0 } summary { cursor: pointer }
.scroll { max-height: none } table { font-size: .8rem } td, th { padding-right: .7rem } th { white-space: pre-line }
td.word { white-space: normal; overflow-wrap: break-word; min-width: 9rem }
@media (max-width: 40rem) { figure { overflow-x: auto } figure svg { min-width: 46rem } svg text { font-size: 11px } }
</style>"""


def parity_page(report: ParityReport, *, recipe: str) -> str:
    """The page's HTML; `recipe` names what was trained."""
    title = f"Parity of {Path(recipe).name}"
    body = [
        _STYLE,
        f"<h1>{escape(title)}</h1>",
        f"<p class=note>{counted(report.steps, 'step')} in {escape(report.precision)} on each layout, compared with "
        f"one process. Differences are relative. Recipe: {escape(recipe)}</p>",
        f"<p{' class=problem' if report.failures else ''}><b>{escape(verdict(report))}</b></p>",
        *(f"<p class=problem>{escape(failure.splitlines()[0])}</p>" for failure in report.failures),
        f"<figure>{draw_differences(report)}</figure>",
        "<h2>Layouts</h2>",
        _table(headers(report), (cells(report, row) for row in _all_rows(report)), _classes(report)),
        _spread(report),
        *_gradients(report),
        *_resumes(report),
        *_skipped(report),
    ]
    return run_page(title, "\n".join(part for part in body if part))


def _all_rows(report: ParityReport) -> list[Row]:
    return [*report.reference, *report.yardsticks, *report.rows]


def _classes(report: ParityReport) -> list[str]:
    return [
        "failed" if row in report.rows and row_failures(row, report.tolerances) else "" for row in _all_rows(report)
    ]


def _spread(report: ParityReport) -> str:
    spread = report.yardstick_spread
    if spread is None:
        return ""
    splits = 1 + len(report.yardsticks)
    return (
        f"<p class=note>The spread is {spread:.1e}: the largest difference of the loss between {splits} splits of one "
        f"process into micro-batches.</p>"
    )


def _gradients(report: ParityReport) -> Iterable[str]:
    """For each layout, the parameters whose gradients of step 1 differ most."""
    rows = [row for row in report.rows if row.gradient_differences]
    if not rows:
        return
    yield "<h2>Gradients of step 1</h2>"
    yield f"<p class=note>The tolerance is {report.tolerances.gradient:g}. The largest differences come first.</p>"
    for row in rows:
        ranked = sorted(row.gradient_differences.items(), key=lambda item: _order(item[1]), reverse=True)
        shown = [[name, _figure(value)] for name, value in ranked[:_SHOWN_PARAMETERS]]
        wrong = [value for value in row.gradient_differences.values() if not value <= report.tolerances.gradient]
        is_open = " open" if wrong else ""
        worst = largest(row.gradient_differences.values())
        about = f"{row.result.name}: {f'up to {worst:.1e}' if worst else 'no difference'}"
        more = f"{len(wrong):,} of {len(ranked):,} parameters above the tolerance" if wrong else ""
        yield f"<details{is_open}><summary>{escape(about)}{f'; {more}' if more else ''}</summary>"
        yield _table(["parameter", "difference"], shown) + "</details>"


def _resumes(report: ParityReport) -> Iterable[str]:
    if report.resumes:
        yield "<h2>Checkpoints between engines</h2>"
        rows = [
            [row.name, *(f"{loss:.6f}" for loss in row.losses), _figure(largest(row.differences))]
            for row in report.resumes
        ]
        steps = [f"loss of step {report.steps + 1 + i}" for i in range(len(report.resumes[0].losses))]
        yield _table(["saved -> loaded", *steps, "difference"], rows)


def _skipped(report: ParityReport) -> Iterable[str]:
    if report.skipped:
        yield "<h2>Left out</h2>"
        ordered = sorted(report.skipped, key=lambda skipped: skipped.reason)
        for reason, group in itertools.groupby(ordered, key=lambda skipped: skipped.reason):
            yield f"<p class=note>{escape('; '.join(skipped.layout for skipped in group))}: {escape(reason)}</p>"


def _table(titles: list[str], rows: Iterable[list[str]], classes: Iterable[str] = ()) -> str:
    head = "".join(f"<th{' class=word' if i == 0 else ''}>{escape(title)}</th>" for i, title in enumerate(titles))
    lines = [
        f"<tr{f' class={name}' if name else ''}>"
        + "".join(f"<td{' class=word' if i == 0 else ''}>{escape(cell)}</td>" for i, cell in enumerate(row))
        + "</tr>"
        for row, name in itertools.zip_longest(rows, classes, fillvalue="")
    ]
    return f"<div class=scroll><table><tr>{head}</tr>{''.join(lines)}</table></div>"


def _figure(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def _order(value: float) -> float:
    """NaN before every number."""
    return math.inf if math.isnan(value) else value
