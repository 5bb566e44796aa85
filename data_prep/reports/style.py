"""The look of every report page: colours, type, tables, bars, and the frame of an HTML page.

`launch.reports.style` adds what only a training run's page needs. A page has no script and loads nothing. Every colour
is a CSS variable with a value for light and one for dark screens. The colours:

- `--s0` to `--s6`: series in a plot or bars in a table, in this order; classes `s0` to `s6` set `--c`.
- `--fault`, `--warning`, `--restart`, `--checkpoint`, `--event`: meanings; never used for a series.
- `--ink`, `--soft`, `--line`, `--paper`, `--card`: text, secondary text, rules, background, background of a figure.
"""

from html import escape

COLOURS = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; --paper: #fff; --card: #f7f9fb;
  --s0: #2f6fc4; --s1: #d9730d; --s2: #2a9d5c; --s3: #9b51b8; --s4: #b8860b; --s5: #0e8f9e; --s6: #c2476f;
  --fault: #cf2e2e; --warning: #e08600; --restart: #7a4fc9; --checkpoint: #8793a3; --event: #9aa5b3 }
@media (prefers-color-scheme: dark) { :root { --ink: #dde3ea; --soft: #98a4b3; --line: #323a45; --paper: #14181d;
  --card: #1c2229; --s0: #6aa5f0; --s1: #f09a48; --s2: #5fcf90; --s3: #c78be0; --s4: #d9b04a; --s5: #52c7d4;
  --s6: #ea86a8; --fault: #ff6b66; --warning: #ffb347; --restart: #ab8bf0; --checkpoint: #7c8896; --event: #6f7b89 } }
.s0 { --c: var(--s0) } .s1 { --c: var(--s1) } .s2 { --c: var(--s2) } .s3 { --c: var(--s3) } .s4 { --c: var(--s4) }
.s5 { --c: var(--s5) } .s6 { --c: var(--s6) }
"""

PAGE = """
* { box-sizing: border-box }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1.2rem;
  color: var(--ink); background: var(--paper) }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin: 2.4rem 0 .2rem }
h3 { font-size: .95rem; margin: 0 } p.note { color: var(--soft); margin: .2rem 0 .8rem; overflow-wrap: anywhere }
p.problem { color: var(--fault); margin: .2rem 0 }
.key { color: var(--soft); font-size: .82rem; white-space: nowrap; margin-right: .7rem }
.key i, td i { display: inline-block; width: .75rem; height: .75rem; border-radius: 2px; margin-right: .35rem;
  vertical-align: -1px; background: var(--c) }

.scroll { overflow: auto; max-height: 27rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; min-width: 45% }
th { font-weight: 600; border-bottom: 1px solid var(--line); position: sticky; top: 0; background: var(--paper) }
td, th { padding: .22rem 1.4rem .22rem 0; text-align: right; vertical-align: top; white-space: nowrap }
tr + tr td { border-top: 1px solid var(--line) }
td.word, th.word { text-align: left } td.text { text-align: left; white-space: normal; overflow-wrap: anywhere;
  min-width: 16rem }
td.bar { width: 34%; min-width: 8rem; padding-right: 0; vertical-align: middle }
.bar div { height: .75rem; background: var(--c); border-radius: 2px; min-width: 1px }

@media (max-width: 40rem) { body { margin: 1rem auto; padding: 0 .8rem } table { font-size: .84rem }
  td, th { padding-right: .7rem } }
"""


def html_page(title: str, body: str, *, style: str = "") -> str:
    """A whole HTML page; `title` is plain text, `body` HTML, `style` CSS that is added to the shared one."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    return (
        f'<!doctype html><html lang="en">{head}<title>{escape(title)}</title>'
        f"<style>{COLOURS}{PAGE}{style}</style>\n{body}\n"
    )
