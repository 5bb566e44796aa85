"""How the page of a run looks: its CSS, light and dark, and the colours of the parts of its time."""

from gpt.telemetry.goodput import DOWN, REPEATED

STYLE = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; --paper: #fff; --card: #f7f9fb;
  --blue: #2f6fc4; --v0: #d9730d; --v1: #2a9d5c; --v2: #9b51b8; --v3: #b8860b; --v4: #0e8f9e; --v5: #c2476f;
  --fault: #cf2e2e; --warning: #e08600; --restart: #7a4fc9; --checkpoint: #8793a3; --note: #9aa5b3 }
@media (prefers-color-scheme: dark) { :root { --ink: #dde3ea; --soft: #98a4b3; --line: #323a45; --paper: #14181d;
  --card: #1c2229; --blue: #6aa5f0; --v0: #f09a48; --v1: #5fcf90; --v2: #c78be0; --v3: #d9b04a; --v4: #52c7d4;
  --v5: #ea86a8; --fault: #ff6b66; --warning: #ffb347; --restart: #ab8bf0; --checkpoint: #7c8896; --note: #6f7b89 } }
* { box-sizing: border-box }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1.2rem;
  color: var(--ink); background: var(--paper) }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin: 2.4rem 0 .2rem }
h3 { font-size: .95rem; margin: 0 } p.note { color: var(--soft); margin: .2rem 0 .8rem; overflow-wrap: anywhere }
p.problem { color: var(--fault); margin: .2rem 0 }

.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .6rem; margin: 1.2rem 0 }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .55rem .75rem }
.tiles b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums }
.tiles span { color: var(--soft); font-size: .82rem; display: block; overflow-wrap: anywhere }

.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); gap: 1rem }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .6rem .7rem .3rem }
figcaption { display: flex; flex-wrap: wrap; gap: 0 1rem; align-items: baseline; min-height: 1.5rem }
svg { width: 100%; height: auto; display: block } svg text { font-size: 11px; fill: var(--soft) }
.blue { --c: var(--blue) } .lost { --c: var(--soft) } .v0 { --c: var(--v0) } .v1 { --c: var(--v1) }
.v2 { --c: var(--v2) } .v3 { --c: var(--v3) } .v4 { --c: var(--v4) } .v5 { --c: var(--v5) }
.fault { --c: var(--fault) } .warning { --c: var(--warning) } .restart { --c: var(--restart) }
.checkpoint { --c: var(--checkpoint) } .note { --c: var(--note) }
.grid { stroke: var(--line); fill: none } .axis { stroke: var(--soft); fill: none; opacity: .6 }
.line { stroke: var(--c); fill: none; stroke-width: 1.5; stroke-linejoin: round } .line.lost { opacity: .5 }
.band { fill: var(--c); opacity: .22 } .dot { fill: var(--c) }
.mark { stroke: var(--c); fill: none; opacity: .6 } .mark.checkpoint { stroke-width: 1.6; opacity: 1 }
.mark.restart { stroke-dasharray: 5 3 } .mark.note { stroke-dasharray: 1 3 }
.key { color: var(--soft); font-size: .82rem; white-space: nowrap; margin-right: .7rem }
.key i, td i { display: inline-block; width: .75rem; height: .75rem; border-radius: 2px; margin-right: .35rem;
  vertical-align: -1px; background: var(--c) }
i.lost { opacity: .4 }
.key i.fault, .key i.warning, .key i.restart, .key i.note, .key i.checkpoint { width: 3px }
.key i.checkpoint { height: .45rem } .key i.lost { height: 2px; vertical-align: 3px }
.key i.restart { background: repeating-linear-gradient(var(--c) 0 4px, transparent 4px 6px) }
.key i.note { background: repeating-linear-gradient(var(--c) 0 2px, transparent 2px 4px) }

.share { display: flex; height: 1.7rem; border-radius: 6px; overflow: hidden; margin: .7rem 0 .4rem }
.share div { overflow: hidden; color: #fff; font-size: .8rem; line-height: 1.7rem; padding-left: .4rem;
  text-overflow: ellipsis; white-space: nowrap }
.strip { position: relative; height: 1.1rem; background: var(--line); border-radius: 4px; overflow: hidden;
  margin: .2rem 0 1rem }
.strip div { position: absolute; top: 0; bottom: 0; min-width: 1px; border-left: 1px solid var(--paper);
  background: var(--c) }

.scroll { overflow: auto; max-height: 27rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; min-width: 45% }
th { font-weight: 600; border-bottom: 1px solid var(--line); position: sticky; top: 0; background: var(--paper) }
td, th { padding: .22rem 1.4rem .22rem 0; text-align: right; vertical-align: top; white-space: nowrap }
tr + tr td { border-top: 1px solid var(--line) }
td.word, th.word { text-align: left } td.text { text-align: left; white-space: normal; overflow-wrap: anywhere;
  min-width: 16rem }

@media (max-width: 40rem) { body { margin: 1rem auto; padding: 0 .8rem } svg text { font-size: 15px }
  .tiles { grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)) }
  table { font-size: .84rem } td, th { padding-right: .7rem }
  .told, .told tbody { display: block } .told tr:first-child { display: none }
  .told tr { display: block; padding: .4rem 0; border-top: 1px solid var(--line) }
  .told td { display: inline-block; border: 0; padding-top: 0; padding-bottom: 0 }
  .told td:nth-child(2):not(:empty)::before { content: "step " }
  .told td.text { display: block; min-width: 0; padding: 0 } }
"""

# What each part of the time is coloured: useful, lost, and the rest between them.
TIME_COLOURS = {
    "training": "#2f6fc4",
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
