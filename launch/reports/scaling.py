"""`triaxial report --scaling`: loss against compute of a family of runs as a table, a picture, a page or JSON."""

import argparse
from collections.abc import Sequence
from html import escape
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from gpt.errors import ConfigError
from gpt.evaluation.scaling_law import GPT3_LAW, PF_DAY_FLOPS, Point, PowerLaw, fit_power_law, fitted_points, frontier
from gpt.telemetry.screen import human_count
from launch.processes.terminal import table_console
from launch.reports.scaling_plot import draw_family
from launch.reports.scaling_runs import Family, read_family
from launch.reports.style import run_page
from launch.reports.written import Emit, write_page

COLUMNS = ("run", "parameters", "tokens", "PF-days", "loss")
COUNTED = (
    "Compute is 6 N D in PF-days (8.64e19 FLOPs), N the parameters without embeddings and head, as in figure 3.1 of "
    "the GPT-3 paper."
)
LEVELS = (
    "Other data or another tokenizer change the factor of a law: compare its exponent with GPT-3's, not its factor."
)


def run(args: argparse.Namespace, emit: Emit) -> int:
    family = read_family(args.run, corpus=args.corpus)
    points = frontier(family.curves)
    used = fitted_points(points)
    law, reason = fit(used)
    console = table_console()
    for note in family.notes:
        console.print(Text(f"note: {note}"))
    console.print(family_table(family))
    for line in law_lines(law, reason, used):
        console.print(Text(line))
    if args.svg is not None:
        write_page("--svg", args.svg, picture(family, used, law))
    if args.html is not None:
        write_page("--html", args.html, page(family, used, law, reason))
    for path in filter(None, (args.svg, args.html)):
        console.print(Text(f"wrote {path}"))
    emit(as_json(family, points, used, law))
    return 0


def fit(used: Sequence[Point]) -> tuple[PowerLaw | None, str]:
    """The law, or None and the reason why none can be fitted."""
    try:
        return fit_power_law(used), ""
    except ConfigError as error:
        return None, f"no power law is fitted: {error}"


def rows(family: Family) -> list[tuple[str, ...]]:
    """One row per run at its last evaluation, smallest run first."""
    return [
        (
            run.curve.name,
            human_count(run.curve.n_parameters),
            human_count(run.curve.tokens[-1]),
            f"{run.curve.pf_days[-1]:.3g}",
            f"{run.curve.losses[-1]:.4f}",
        )
        for run in family.runs
    ]


def family_table(family: Family) -> Table:
    title = f"Loss on {family.corpus} against compute"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "run" else "right", overflow="fold")
    for name, *figures in rows(family):
        table.add_row(Text(name), *figures)
    return table


def law_lines(law: PowerLaw | None, reason: str, used: Sequence[Point]) -> list[str]:
    found = [reason]
    if law is not None:
        span = f"{used[0].pf_days:.2g} to {used[-1].pf_days:.2g} PF-days"
        interval = f", exponent {_interval(law)} (95%, if their errors are independent)" if law.exponent_95 else ""
        found = [f"frontier: {law_text(law)}, from {len(used)} evaluations of {span}{interval}"]
        if len({point.curve for point in used}) == 1:
            found.append(
                "All of these evaluations are of one run: this is its learning curve, not a law of several runs."
            )
    return [*found, f"GPT-3: {law_text(GPT3_LAW)}", COUNTED, LEVELS]


def law_text(law: PowerLaw) -> str:
    return f"L = {law.factor:.3g} C^{law.exponent:.3f}"


def _interval(law: PowerLaw) -> str:
    assert law.exponent_95 is not None
    return f"{law.exponent_95[0]:.3f} to {law.exponent_95[1]:.3f}"


def picture(family: Family, used: Sequence[Point], law: PowerLaw | None) -> str:
    own = f"frontier of these runs: {law_text(law)}" if law is not None else ""
    return draw_family(
        family.curves, used=used, law=law, law_text=own, gpt3_text=f"GPT-3, its own data: {law_text(GPT3_LAW)}"
    )


def page(family: Family, used: Sequence[Point], law: PowerLaw | None, reason: str) -> str:
    """One page with the picture and the table. Everything that comes from the runs' files is escaped."""
    head = "".join(f"<th{' class=word' if name == 'run' else ''}>{name}</th>" for name in COLUMNS)
    body = "".join(
        f"<tr><td class=word>{escape(name)}</td>{''.join(f'<td>{figure}</td>' for figure in figures)}</tr>"
        for name, *figures in rows(family)
    )
    notes = "".join(f"<p class=note>{escape(line)}</p>" for line in law_lines(law, reason, used))
    problems = "".join(f"<p class=problem>{escape(note)}</p>" for note in family.notes)
    return run_page(
        "loss against compute",
        f"<h1>Loss on {escape(family.corpus)} against compute</h1>{problems}\n"
        f"<figure>{picture(family, used, law)}</figure>{notes}\n"
        f"<div class=scroll><table><tr>{head}</tr>{body}</table></div>",
    )


def as_json(family: Family, points: Sequence[Point], used: Sequence[Point], law: PowerLaw | None) -> dict[str, Any]:
    """Everything that is drawn, for programs, in plain units."""
    runs = [
        {
            "run": str(run.directory),
            "parameters_without_embeddings": run.curve.n_parameters,
            "parameters": run.config.model.parameters,
            "tokens": [int(tokens) for tokens in run.curve.tokens],
            "pf_days": run.curve.pf_days.tolist(),
            "loss_nats": run.curve.losses.tolist(),
        }
        for run in family.runs
    ]
    fitted = set(used)
    laws: dict[str, Any] = {
        name: None if one is None else {"factor": one.factor, "exponent": one.exponent, "exponent_95": one.exponent_95}
        for name, one in (("law", law), ("gpt3_law", GPT3_LAW))
    }
    return {
        "corpus": family.corpus,
        "pf_day_flops": PF_DAY_FLOPS,
        "runs": runs,
        "frontier": [
            {
                "run": str(family.runs[point.curve].directory),
                "tokens": point.tokens,
                "pf_days": point.pf_days,
                "loss_nats": point.loss,
                "fitted": point in fitted,
            }
            for point in points
        ],
        **laws,
        "notes": family.notes,
    }
