"""The style of the moderation report, on top of the style of run pages."""

MODERATION = """
.wide { overflow-x: auto;
  background: linear-gradient(90deg, var(--paper) 30%, transparent) left / 2rem 100% no-repeat local,
  linear-gradient(270deg, var(--paper) 30%, transparent) right / 2rem 100% no-repeat local,
  linear-gradient(90deg, var(--line), transparent) left / .8rem 100% no-repeat scroll,
  linear-gradient(270deg, var(--line), transparent) right / .8rem 100% no-repeat scroll }
.wide table { min-width: 0 } .wide th { position: static; background: none } .wide + .wide { margin-top: 1.2rem }
.measures td, .measures th { padding-right: .8rem } .measures th:last-child { white-space: normal; max-width: 6rem }
td small { display: block; color: var(--soft); font-size: .78rem }
td.word small { max-width: 13rem; white-space: normal; line-height: 1.2 }
tr:not(.first) + tr.first td { border-top: 1px solid var(--line) } tr.first + tr:not(.first) td { border-top: 0 }
.forest { max-width: 46rem; margin: .6rem 0 1rem } .forest text.name { fill: var(--ink); font-weight: 600 }
.whisker { stroke: var(--c); stroke-width: 2.5; stroke-linecap: round; opacity: .55 }
.hollow { fill: var(--card); stroke: var(--c); stroke-width: 1.8 }
.base { stroke: var(--soft); stroke-dasharray: 3 4; fill: none; opacity: .7 }
.point { fill: var(--card); stroke: var(--c); stroke-width: 2 } .bin { fill: var(--c); opacity: .55 }
.small { display: grid; grid-template-columns: repeat(auto-fill, minmax(12.5rem, 1fr)); gap: .8rem }
.small figure { padding: .4rem .5rem .2rem } .small figcaption { min-height: 0 }
.confusions { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: .8rem }
.confusion { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .5rem .7rem }
.confusion table { width: 100%; margin-top: .2rem } .confusion th { position: static; background: none; border: 0;
  color: var(--soft); font-weight: 400; font-size: .82rem; padding: .2rem .3rem; text-align: center }
.confusion th[scope] { text-align: left; vertical-align: middle }
.confusion td small { color: inherit }
.confusion td { border: 0 !important; text-align: center; padding: .25rem .3rem }
.confusion td.right { background: color-mix(in srgb, var(--s2) calc(var(--p) * .4), transparent); border-radius: 5px }
.confusion td.wrong { background: color-mix(in srgb, var(--s1) calc(var(--p) * .7), transparent); border-radius: 5px }
.heats { border-spacing: 2px; border-collapse: separate; margin: .3rem 0 1.2rem }
.heats th { position: static; background: none; border: 0; padding: .1rem .4rem; font-weight: 400; font-size: .84rem }
.heats th[scope] { text-align: left; padding-left: 0; white-space: nowrap; vertical-align: middle }
.heats th span { display: inline-block; max-width: 6.5rem; white-space: normal; color: var(--soft); line-height: 1.15;
  vertical-align: bottom }
.heats .groups th { text-align: left; white-space: nowrap; font-weight: 600; border-bottom: 1px solid var(--line) }
.heats td { border: 0 !important; padding: .2rem .3rem; text-align: center; min-width: 2.6rem; border-radius: 4px }
.heats td.heat { background: color-mix(in srgb, var(--s1) var(--p), var(--card)) }
td.gap { position: relative; width: 16rem; min-width: 8rem; padding: 0 }
td.gap::before { content: ""; position: absolute; left: 50%; top: 0; bottom: 0; border-left: 1px solid var(--soft) }
td.gap div { position: absolute; top: .35rem; height: .75rem; background: var(--c); border-radius: 2px }
h2 + h3, .wide + h3 { margin: 1rem 0 .2rem }
@media (max-width: 40rem) { .small { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .5rem }
  .small svg text { font-size: 15px } .forest svg text { font-size: 19px }
  .confusions { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .5rem }
  .confusion { padding: .4rem } .confusion h3 { overflow-wrap: anywhere }
  .confusion th, .confusion td { padding: .2rem .05rem; font-size: .76rem } .confusion td small { font-size: .68rem }
  .measures .count { display: none } td.word small { max-width: 6rem }
  .plain td.bar, .plain th.bar { display: none } }
"""
