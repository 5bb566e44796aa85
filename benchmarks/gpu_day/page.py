"""`index.html` and `gpu_report.json` of a GPU day, from the results on disk: what passed, failed, and was not begun."""

import json
import math
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from job import Check
from parts import Part
from results import Result, as_json, read_result

from gpt.files.atomic import replace_file
from launch.reports.style import run_page

STYLE = """<style>
.good { color: var(--s2) } .bad { color: var(--fault) } .off { color: var(--soft) }
td.bar { width: 14%; padding-right: 1rem }
h2 small { font-weight: 400; color: var(--soft); font-size: .82rem; margin-left: .6rem }
</style>"""
LOOK = {"passed": "good", "failed": "bad", "error": "bad", "time limit": "bad"}


def write_report(folder: Path, facts: dict[str, str], parts: Sequence[Part]) -> tuple[Path, Path]:
    """Write both files from what is on disk of these parts; return their paths."""
    results = [(part.name, part.title, read_result(folder, part.name)) for part in parts]
    page, table = folder / "index.html", folder / "gpu_report.json"
    replace_file(table, json.dumps(report_table(results, facts), indent=1) + "\n")
    replace_file(page, report_page(results, facts))
    return page, table


def report_table(results: list[tuple[str, str, Result | None]], facts: dict[str, str]) -> dict[str, Any]:
    return {
        "written_at": time.time(),
        "machine": facts,
        "parts": {name: {"status": "not begun"} if found is None else as_json(found) for name, _, found in results},
    }


def report_page(results: list[tuple[str, str, Result | None]], facts: dict[str, str]) -> str:
    states = ["not begun" if found is None else found.status for _, _, found in results]
    checks = [check for _, _, found in results if found is not None for check in found.checks]
    failed = sum(check.passed is False for check in checks)
    asked = sum(check.passed is not None for check in checks)
    bad = sum(LOOK.get(state) == "bad" for state in states)
    tiles = {
        "parts passed": (f"{states.count('passed')} of {len(states)}", f"{bad} failed"),
        "checks passed": (f"{asked - failed} of {asked}", "with a tolerance"),
        "not run": (str(len(states) - states.count("passed") - bad), "left out, cut short or not begun"),
        "time": (f"{sum(r.elapsed_s for _, _, r in results if r is not None) / 60:.0f} min", "of all parts"),
    }
    machine = " &middot; ".join(f"{escape(key)} {escape(value)}" for key, value in facts.items() if key != "device")
    body = [
        STYLE,
        f"<h1>GPU day: {escape(facts['device'])}</h1>",
        f"<p class=note>{machine} &middot; page written at {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())}</p>",
        "<div class=tiles>",
        *(f"<div><span>{name}</span><b>{value}</b><span>{note}</span></div>" for name, (value, note) in tiles.items()),
        "</div>",
        overview(results),
        *(section(found, facts) for _, _, found in results if found is not None and found.checks),
    ]
    return run_page(f"GPU day: {facts['device']}", "\n".join(body))


def overview(results: list[tuple[str, str, Result | None]]) -> str:
    rows = ["<tr><th class=word>part</th><th class=word>subject</th><th class=word>state</th><th>time</th>"
            "<th class=word>reason</th></tr>"]  # fmt: skip
    for name, title, found in results:
        state, text, elapsed = "not begun", "", ""
        if found is not None:
            state, text, elapsed = found.status, found.text, f"{found.elapsed_s:.0f} s"
        named = f"<a href='#{escape(name)}'>{escape(name)}</a>" if found is not None and found.checks else escape(name)
        rows.append(
            f"<tr><td class=word>{named}</td><td class=word>{escape(title)}</td>"
            f"<td class='word {LOOK.get(state, 'off')}'>{escape(state)}</td><td>{elapsed}</td>"
            f"<td class=text>{escape(text)}</td></tr>"
        )
    return f"<h2>Parts</h2><div class=scroll style='max-height:none'><table>{''.join(rows)}</table></div>"


def section(result: Result, facts: dict[str, str]) -> str:
    """A part's checks and figures. A bar shows a speed beside the fastest of its unit."""
    fastest: dict[str, float] = {}
    for check in result.checks:
        if is_speed(check):
            fastest[check.unit] = max(fastest.get(check.unit, 0.0), check.found)
    has_bars = bool(fastest)
    head = "<tr><th class=word>check</th><th>found</th><th>allowed</th><th class=word>unit</th><th class=word></th>"
    head += f"{'<th></th>' if has_bars else ''}<th class=word>note</th></tr>"
    rows = [head]
    for check in result.checks:
        look, word = {None: ("off", ""), True: ("good", "passed"), False: ("bad", "failed")}[check.passed]
        allowed = "" if check.at_most is None else number(check.at_most)
        share = 100 * check.found / fastest[check.unit] if is_speed(check) and fastest[check.unit] else 0
        bar = f"<td class='bar s0'>{f'<div style=width:{share:.1f}%></div>' if share else ''}</td>" if has_bars else ""
        rows.append(
            f"<tr><td class=word>{escape(check.name)}</td><td>{number(check.found)}</td><td>{allowed}</td>"
            f"<td class=word>{escape(check.unit)}</td><td class='word {look}'>{word}</td>{bar}"
            f"<td class=text>{escape(check.note)}</td></tr>"
        )
    other = f"; on commit {result.facts['commit']}" if result.facts["commit"] != facts["commit"] else ""
    note = f"{result.headline}{other}"
    return (
        f"<h2 id='{escape(result.part)}'>{escape(result.title)}<small>{escape(note)}</small></h2>"
        f"<div class=scroll style='max-height:none'><table>{''.join(rows)}</table></div>"
    )


def is_speed(check: Check) -> bool:
    return check.at_most is None and check.unit.endswith("/s")


def number(value: float) -> str:
    """Three digits, or all of a large whole number."""
    whole = math.isfinite(value) and (abs(value) >= 1000 or value == int(value))
    return f"{value:,.0f}" if whole else f"{value:.3g}"
