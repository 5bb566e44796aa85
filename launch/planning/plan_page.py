"""`triaxial plan --html`: the best layout, where a step goes, time against memory, cost against days, rejected layouts.

The page has no script and loads nothing."""

from collections.abc import Sequence
from html import escape

from gpt.telemetry.screen import human_count
from launch.planning.plan_report import PlannedLayout, seconds_text
from launch.planning.plan_scatter import PlanPoint, scatter
from launch.reports.style import run_page
from parallel.planner.choice.candidates import PlanRequest
from parallel.planner.choice.ranking import USABLE, Ranking

GIB = 2**30
COLOURS = {
    "products": "#2f6fc4",
    "attention": "#7a4fc9",
    "elementwise": "#0e8f9e",
    "recompute": "#b8860b",
    "tensor": "#2a9d5c",
    "pipeline": "#62b98a",
    "bubble": "#98a4b3",
    "data": "#e08600",
    "optimizer": "#c2476f",
    "overhead": "#5b6675",
}
WORDS = {
    "tensor": "tensor messages",
    "pipeline": "pipeline messages",
    "data": "data messages",
}
_STYLE = """<style>
.steps { display: grid; grid-template-columns: minmax(9rem, 24rem) 1fr 5rem; gap: .25rem .8rem; align-items: center;
  font-size: .85rem } .steps .share { margin: 0; height: 1.3rem } .steps .share div { padding: 0 }
.steps span { overflow-wrap: anywhere } .steps b { font-variant-numeric: tabular-nums; text-align: right }
.rest { color: var(--soft) } .curve { max-width: 46rem }
@media (max-width: 40rem) { .steps { grid-template-columns: 1fr 4.5rem }
  .steps .share { grid-column: 1 / -1; grid-row: auto } .steps { grid-auto-flow: dense } }
</style>"""


def plan_page(
    title: str, rankings: Sequence[tuple[Ranking, list[PlannedLayout]]], request: PlanRequest, *, knee: int | None
) -> str:
    """The page's HTML. Of several numbers of GPUs, it shows the curve of the best ones, then the last in full."""
    ranking, planned = rankings[-1]
    curve = [layouts[0] for _, layouts in rankings if layouts]
    cluster = request.cluster
    note = (
        f"{ranking.gpus:,} {cluster.gpu.name} in nodes of {cluster.node}, network {cluster.network.name} "
        f"({cluster.network.gb_per_s:g} GB/s a GPU), stack {request.stack.name}. {ranking.fitting:,} layouts fit."
    )
    body = [
        _STYLE,
        f"<h1>{escape(title)}</h1><p class=note>{escape(note)} Predicted, not measured: see the intervals.</p>",
        _tiles(planned[0], request) if planned else "<p class=problem>No layout fits.</p>",
        _scaling(curve, knee) if len(rankings) > 1 and knee is not None else "",
        _bars(planned) if planned else "",
        _plots(planned, request) if planned else "",
        _memory(planned) if planned else "",
        _rejected(ranking),
    ]
    return run_page(title, "\n".join(part for part in body if part))


def _tiles(best: PlannedLayout, request: PlanRequest) -> str:
    time, job, run = best.ranked.time, best.ranked.candidate.job, best.run
    shown = [
        ("step", seconds_text(time.seconds), f"90% {seconds_text(time.low)} to {seconds_text(time.high)}"),
        ("tokens a second", human_count(time.tokens_per_s(job)), f"MFU {time.mfu(job, request.cluster):.1%}"),
        ("days", f"{run.days:,.1f}", f"{run.low / 86_400:,.1f} to {run.high / 86_400:,.1f}; {run.steps:,} steps"),
        ("cost", "-" if run.cost is None else f"{run.cost:,.0f}", "at the given price a GPU-hour"),
        ("energy", "-" if run.energy_kwh is None else f"{run.energy_kwh / 1000:,.0f} MWh", "at the power limit"),
        ("peak memory", f"{best.ranked.memory.peak / GIB:.1f} GiB", f"of {request.cluster.gpu.memory_gib:g}"),
        ("save every", f"{run.checkpoint_every_s / 60:,.0f} min", f"{run.lost:.1%} lost to saves and failures"),
    ]
    tiles = "".join(f"<div><span>{a}</span><b>{b}</b><span>{c}</span></div>" for a, b, c in shown)
    return f"<p class=note>Best layout: <b>{escape(best.ranked.words)}</b></p><div class=tiles>{tiles}</div>"


def _bars(planned: Sequence[PlannedLayout]) -> str:
    longest = max(each.ranked.time.seconds for each in planned)
    rows = []
    for each in planned:
        parts = "".join(
            f'<div style="width:{100 * seconds / longest:.3f}%;background:{COLOURS[name]}" '
            f'title="{WORDS.get(name, name)} {seconds_text(seconds)}"></div>'
            for name, seconds in each.ranked.time.parts.items()
            if seconds > 0
        )
        rows.append(
            f"<span>{_words(each)}</span><div class=share>{parts}</div><b>{seconds_text(each.ranked.time.seconds)}</b>"
        )
    keys = "".join(
        f"<span class=key><i style='background:{colour}'></i>{WORDS.get(name, name)}</span>"
        for name, colour in COLOURS.items()
    )
    return f"<h2>Where a step goes</h2><p class=note>{keys}</p><div class=steps>{''.join(rows)}</div>"


def _plots(planned: Sequence[PlannedLayout], request: PlanRequest) -> str:
    memory = [
        PlanPoint(each.ranked.memory.peak / GIB, each.ranked.time.seconds, each.ranked.words, best=i == 0)
        for i, each in enumerate(planned)
    ]
    limit = USABLE * request.cluster.gpu.memory_gib
    figures = [("Seconds a step against peak memory, GiB", scatter(memory, label="time and memory", limit=limit))]
    if all(each.run.cost is not None for each in planned):
        cost = [
            PlanPoint(each.run.days, each.run.cost or 0.0, each.ranked.words, best=i == 0)
            for i, each in enumerate(planned)
        ]
        figures.append(("Cost against days", scatter(cost, label="cost and days")))
    drawn = "".join(f"<figure><figcaption><h3>{t}</h3></figcaption>{svg}</figure>" for t, svg in figures)
    note = "Each point is a layout; orange is the best. The red line is the memory that a rank may use."
    return f"<h2>Choices</h2><p class=note>{note}</p><div class=plots>{drawn}</div>"


def _scaling(curve: Sequence[PlannedLayout], knee: int) -> str:
    points = [
        PlanPoint(each.gpus, each.ranked.time.tokens_per_s(each.ranked.candidate.job), each.ranked.words,
              best=each.gpus == knee)
        for each in curve
    ]  # fmt: skip
    rows = "".join(
        f"<tr><td>{each.gpus:,}</td><td>{seconds_text(each.ranked.time.seconds)}</td><td>{each.run.days:,.1f}</td>"
        f"<td>{'-' if each.run.cost is None else f'{each.run.cost:,.0f}'}</td>"
        f"<td class=word>{escape(each.ranked.words)}</td></tr>"
        for each in curve
    )
    head = "<tr><th>GPUs</th><th>step</th><th>days</th><th>cost</th><th class=word>best layout</th></tr>"
    picture = scatter(points, label="tokens a second by GPUs", joined=True, log=True)
    return (
        f"<h2>More GPUs</h2><p class=note>Up to {knee:,} GPUs, twice as many give at least 1.6 times the speed.</p>"
        f"<div class=curve><figure><figcaption><h3>Tokens a second by number of GPUs</h3></figcaption>"
        f"{picture}</figure></div><div class=scroll><table>{head}{rows}</table></div>"
    )


def _memory(planned: Sequence[PlannedLayout]) -> str:
    names = list(planned[0].ranked.memory.parts)
    head = "".join(f"<th>{name}</th>" for name in (*names, "peak", "dry run"))
    rows = "".join(
        f"<tr><td class=text>{_words(each)}</td>"
        + "".join(f"<td>{each.ranked.memory.parts[name] / GIB:.1f}</td>" for name in names)
        + f"<td>{each.ranked.memory.peak / GIB:.1f}</td>"
        + f"<td>{'-' if each.measured_peak is None else f'{each.measured_peak / GIB:.1f}'}</td></tr>"
        for each in planned
    )
    table = f"<table><tr><th class=word>layout</th>{head}</tr>{rows}</table>"
    return f"<h2>Memory of the fullest rank, GiB</h2><div class=scroll>{table}</div>"


def _words(each: PlannedLayout) -> str:
    """A layout, with spaces where a line may break."""
    return escape(each.ranked.words).replace(",", ", ")


def _rejected(ranking: Ranking) -> str:
    rows = "".join(
        f"<tr><td>{group.count:,}</td><td class=text>{escape(group.reason)}<br>"
        f"<span class=rest>such as {escape(group.layout).replace(',', ', ')}</span></td></tr>"
        for group in ranking.rejected
    )
    head = "<tr><th>layouts</th><th class=word>the rule that rejects them, and what mends it</th></tr>"
    return f"<h2>Rejected layouts</h2><div class=scroll><table>{head}{rows}</table></div>" if rows else ""
