"""The style of plots and of a training run's page, on top of the shared look in `data_prep/reports/style.py`."""

from data_prep.reports.style import COLOURS, html_page
from gpt.telemetry.goodput import DOWN, REPEATED

# Parts of an SVG plot; also embedded in a picture that stands alone.
PLOT = """
svg text { font: 11px system-ui, sans-serif; fill: var(--soft) }
.grid { stroke: var(--line); fill: none } .axis { stroke: var(--soft); fill: none; opacity: .6 }
.line { stroke: var(--c); fill: none; stroke-width: 1.5; stroke-linejoin: round } .line.lost { opacity: .5 }
.band { fill: var(--c); opacity: .22 } .dot { fill: var(--c) } .lost { --c: var(--soft) }
.healthy { fill: var(--s2); opacity: .13 } .ink { --c: var(--ink) }
"""

RUN_PAGE = """
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .6rem; margin: 1.2rem 0 }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .55rem .75rem }
.tiles b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums }
.tiles span { color: var(--soft); font-size: .82rem; display: block; overflow-wrap: anywhere }

.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); gap: 1rem }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .6rem .7rem .3rem }
p + figure { margin: .8rem 0 }
figcaption { display: flex; flex-wrap: wrap; gap: 0 1rem; align-items: baseline; min-height: 1.5rem }
svg { width: 100%; height: auto; display: block }
.fault { --c: var(--fault) } .warning { --c: var(--warning) } .restart { --c: var(--restart) }
.checkpoint { --c: var(--checkpoint) } .note { --c: var(--event) }
.mark { stroke: var(--c); fill: none; opacity: .6 } .mark.checkpoint { stroke-width: 1.6; opacity: 1 }
.mark.restart { stroke-dasharray: 5 3 } .mark.note { stroke-dasharray: 1 3 }
i.lost { opacity: .4 }
.key i.fault, .key i.warning, .key i.restart, .key i.note, .key i.checkpoint { width: 3px }
.key i.checkpoint { height: .45rem } .key i.lost { height: 2px; vertical-align: 3px }
.key i.restart { background: repeating-linear-gradient(var(--c) 0 4px, transparent 4px 6px) }
.key i.note { background: repeating-linear-gradient(var(--c) 0 2px, transparent 2px 4px) }

.faults { list-style: none; padding: 0; margin: .6rem 0 1rem; display: grid; gap: .6rem;
  grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)) }
.faults li { background: var(--card); border: 1px solid var(--line); border-left: 4px solid var(--c);
  border-radius: 8px; padding: .55rem .8rem }
.faults b { margin-right: .5rem } .faults p { margin: .25rem 0 0 }
.faults small { color: var(--soft); display: block; margin-top: .3rem }
.key i.healthy { background: var(--s2); opacity: .3 }
.over { max-width: 46rem } .over .fit { stroke: var(--c); fill: none; stroke-width: 1.6 }
.over .dashed { stroke-dasharray: 6 4 }
.over .point { fill: var(--c); opacity: .45 } .over .hollow { fill: var(--card); stroke: var(--c); stroke-width: 1.5 }
.over .peak { stroke: var(--c); stroke-width: 1; stroke-dasharray: 2 3; opacity: .8 }
.versions { display: grid; grid-auto-columns: minmax(13rem, 1fr); grid-auto-flow: column; gap: .7rem; overflow-x: auto;
  padding-bottom: .4rem; margin: .3rem 0 1.2rem }
.versions div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .5rem .7rem }
.versions p { white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0 0; max-height: 18rem; overflow: auto }
.versions span { color: var(--soft); font-size: .82rem }
.prompted { white-space: pre-wrap; overflow-wrap: anywhere; margin: .6rem 0 .2rem; font-weight: 600; max-height: 9rem;
  overflow: auto }

.sample { white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0 1rem; padding: .5rem .8rem;
  background: var(--card); border-left: 3px solid var(--c) } .sample b { color: var(--soft); font-weight: 600 }
.layout { display: inline-block; margin: .4rem 1.6rem .4rem 0; vertical-align: top }
.layout table { min-width: 0 }
.layout td { border: 1px solid var(--line); text-align: center; padding: .2rem .5rem; background: var(--card) }
summary { color: var(--soft); cursor: pointer; margin: .3rem 0 }

.share { display: flex; height: 1.7rem; border-radius: 6px; overflow: hidden; margin: .7rem 0 .4rem }
.share div { overflow: hidden; color: #fff; font-size: .8rem; line-height: 1.7rem; padding-left: .4rem;
  text-overflow: ellipsis; white-space: nowrap }
.strip { position: relative; height: 1.1rem; background: var(--line); border-radius: 4px; overflow: hidden;
  margin: .2rem 0 1rem }
.strip div { position: absolute; top: 0; bottom: 0; min-width: 1px; border-left: 1px solid var(--paper);
  background: var(--c) }

@media (max-width: 40rem) { svg text { font-size: 15px }
  .tiles { grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)) }
  .stacked, .stacked tbody { display: block } .stacked tr:first-child { display: none }
  .stacked tr { display: block; padding: .4rem 0; border-top: 1px solid var(--line) }
  .stacked td { display: inline-block; border: 0; padding-top: 0; padding-bottom: 0 }
  .stacked td:nth-child(2):not(:empty)::before { content: "step " }
  .stacked td.text { display: block; min-width: 0; padding: 0 } }
"""

# The colour of each part of a run's time: useful, lost, and the rest. The colours are fixed, because the text in a bar
# is white on light and dark screens.
TIME_COLOURS = {
    "training": "#2f6fc4",
    "rollouts": "#6f9fdc",
    "scoring": "#8fa83c",
    REPEATED: "#cf2e2e",
    "evaluation": "#2a9d5c",
    "sampling": "#62b98a",
    "saving": "#b8860b",
    "waiting_for_save": "#d9b04a",
    "data": "#0e8f9e",
    "start_up": "#7a4fc9",
    "rewinding": "#e08600",
    "shutdown": "#7c8896",
    "other": "#98a4b3",
    DOWN: "#5b2020",
}


def run_page(title: str, body: str) -> str:
    """A whole HTML page about training runs; `title` is plain text, `body` HTML."""
    return html_page(title, body, style=PLOT + RUN_PAGE)


def svg_document(parts: list[str], *, width: float, height: float, label: str, style: str = "") -> str:
    """A picture that stands alone and can be embedded in a page; light or dark as the screen is."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
            f'aria-label="{label}">',
            f"<style>{COLOURS}{PLOT}{style}</style>",
            f'<rect style="fill:var(--card)" width="{width:g}" height="{height:g}"/>',
            *parts,
            "</svg>\n",
        ]
    )
