"""The report of a classifier of undesired content as one HTML page without a script. It shows no labelled text.

Everything that comes from a file is escaped: names of versions, categories, functions and words.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from data_prep.reports.style import html_page
from gpt.evaluation.intervals import Interval
from launch.moderation_report.costs import LabelCosts
from launch.moderation_report.measured import ReportFigures, best_and_worst
from launch.moderation_report.plots import (
    MAX_LINES,
    calibration,
    forest,
    interval_text,
    learning_curve,
    precision_recall,
)
from launch.moderation_report.probe_page import probes_part
from launch.moderation_report.probes import ProbeResults
from launch.moderation_report.rounds import Round
from launch.moderation_report.style import MODERATION
from launch.moderation_report.tables import (
    agreement_table,
    confusion_card,
    cost_table,
    gains_table,
    measures_table,
)
from launch.moderation_report.versions import ComparedVersions
from launch.reports.style import PLOT, RUN_PAGE


@dataclass(frozen=True)
class ReportParts:
    """All that the page shows. `probes`: of each version. `rounds` and `costs` may be missing."""

    compared: ComparedVersions
    figures: ReportFigures
    probes: Sequence[Sequence[ProbeResults]] = ()
    rounds: Sequence[Round] = ()
    costs: LabelCosts | None = None


def moderation_page(parts: ReportParts, *, now: float) -> str:
    """The page's HTML. `now`: seconds since 1970."""
    taxonomy = parts.compared.taxonomy
    body = [
        f"<h1>{escape(taxonomy.label)}: report of a classifier</h1>",
        _note(parts, now),
        _tiles(parts),
        _measures(parts),
        _curves(parts.figures),
        _confusions(parts.figures),
        probes_part([one.name for one in parts.compared.versions], parts.probes),
        _rounds(parts.rounds),
        _costs(parts.costs),
    ]
    title = f"{taxonomy.label}: moderation report"
    return html_page(title, "\n".join(part for part in body if part), style=PLOT + RUN_PAGE + MODERATION)


def _key(parts: ReportFigures) -> str:
    if len(parts.versions) < 2:
        return ""
    return "".join(
        f"<span class=key><i class=s{k}></i>{escape(one.name)}</span>" for k, one in enumerate(parts.versions)
    )


def _note(parts: ReportParts, now: float) -> str:
    compared = parts.compared
    notes = [
        f"{len(compared.ids):,} labelled texts",
        *(f"{one.name}{f', model {one.model}' if one.model else ''}" for one in compared.versions),
        f"page written at {time.strftime('%Y-%m-%d %H:%M', time.localtime(now))}",
    ]
    lines = [f"<p class=note>{' &middot; '.join(escape(one) for one in notes)}</p>"]
    if compared.without_scores:
        lines.append(
            f"<p class=problem>{compared.without_scores:,} labelled texts have no scores, and are left out.</p>"
        )
    if compared.contradictory:
        lines.append(
            f"<p class=problem>{compared.contradictory:,} texts are positive in a category and negative in its parent. "
            "Both labels count as unknown.</p>"
        )
    return "".join(lines)


def _tiles(parts: ReportParts) -> str:
    newest = parts.figures.versions[-1].categories[0].measures
    share = f"{newest.positives / newest.known:.1%} positive in any category" if newest.known else "no label"
    whose = f", {parts.figures.versions[-1].name}" if len(parts.figures.versions) > 1 else ""
    tiles = [("labelled texts", f"{len(parts.compared.ids):,}", share)]
    tiles += [(f"AUPRC of any{whose}", *_two(newest.auprc)), (f"AUROC of any{whose}", *_two(newest.auroc))]
    for word, one in zip(("best category", "weakest category"), best_and_worst(parts.figures), strict=False):
        tiles.append((f"{word}{whose}", one.category, f"AUPRC {interval_text(one.auprc)}"))
    if parts.figures.gains:
        gain = parts.figures.gains[0]
        bounds = "" if gain.low != gain.low else f"{gain.low:+.3f} to {gain.high:+.3f}"
        tiles.append(("gain in AUPRC of any", f"{gain.estimate:+.3f}", bounds))
    return "<div class=tiles>{}</div>".format(
        "".join(f"<div><span>{escape(a)}</span><b>{escape(b)}</b><span>{escape(c)}</span></div>" for a, b, c in tiles)
    )


def _two(interval: Interval) -> tuple[str, str]:
    estimate, _, bounds = interval_text(interval).partition(" (")
    return estimate, bounds.rstrip(")")


def _caption(title: str) -> str:
    return f"<figcaption><h3>{escape(title)}</h3></figcaption>"


def _measures(parts: ReportParts) -> str:
    figures = parts.figures
    titles = {one.id: one.title for one in parts.compared.taxonomy.categories} | {"any": "positive in any category"}
    rows = [
        (name, [one.categories[i].measures.auprc for one in figures.versions]) for i, name in enumerate(figures.names)
    ]
    note = (
        "95% intervals by a bootstrap over texts; of precision and recall at the threshold, exact ones. A hollow dot "
        "has too few positives for a bootstrap. Unknown labels do not count."
    )
    found = [
        f"<h2>Categories</h2><p class=note>{note} {_key(figures)}</p>",
        f"<figure class=forest>{_caption('AUPRC')}{forest(rows, label='AUPRC by category')}</figure>",
        measures_table(figures, titles),
    ]
    if figures.gains:
        first, second = (escape(one.name) for one in figures.versions)
        found.append(
            f"<h2>{second} against {first}</h2><p class=note>AUPRC, paired on the same texts.</p>{gains_table(figures)}"
        )
    return "".join(found)


def _curves(figures: ReportFigures) -> str:
    found = []
    for title, note, draw in (
        (
            "Precision and recall",
            "Precision (upwards) over recall. The dot is the threshold, the dashed line the base rate.",
            precision_recall,
        ),
        (
            "Calibration",
            "Share of positives (upwards) over the score, in ten bins. A perfect classifier is on the dashed line; "
            "larger dots are more texts.",
            calibration,
        ),
    ):
        cards = "".join(
            f"<figure>{_caption(name)}{draw([one.categories[i] for one in figures.versions])}</figure>"
            for i, name in enumerate(figures.names)
            if figures.versions[0].categories[i].measures.known
        )
        found.append(f"<h2>{title}</h2><p class=note>{note} {_key(figures)}</p><div class=small>{cards}</div>")
    return "".join(found)


def _confusions(figures: ReportFigures) -> str:
    cards = "".join(
        confusion_card(version.categories[i].measures, f"{name}, {version.name}" if len(figures.versions) > 1 else name)
        for i, name in enumerate(figures.names)
        for version in figures.versions
        if version.categories[i].measures.known
    )
    note = "Labels in rows, decisions at the threshold in columns; shares are of the row."
    return f"<h2>Confusion</h2><p class=note>{note}</p><div class=confusions>{cards}</div>"


def _rounds(rounds: Sequence[Round]) -> str:
    if not rounds:
        return ""
    names = [name for name, _ in rounds[0].auprc]
    positive = [name for name in names if any(dict(one.auprc)[name].estimate >= 0 for one in rounds)][:MAX_LINES]
    keys = "".join(f"<span class=key><i class=s{k}></i>{escape(name)}</span>" for k, name in enumerate(positive))
    head = f"<figcaption><h3>AUPRC</h3>{keys}</figcaption>"
    note = "Each round's classifier on the same labelled texts, over the number of labels that trained it."
    return (
        f"<h2>Rounds</h2><p class=note>{note}</p><figure class=forest>{head}{learning_curve(rounds, positive)}</figure>"
    )


def _costs(costs: LabelCosts | None) -> str:
    if costs is None:
        return ""
    total = costs.total
    note = f"{total.labels:,} labels, {total.positives:,} positive in a category"
    if total.timed:
        note += f", {total.seconds / 3600:.1f} hours of labelling"
    found = [f"<h2>Cost of labels</h2><p class=note>{note}.</p>", cost_table("pipeline", costs.by_pipeline)]
    if len(costs.by_labeller) > 1:
        found += [cost_table("labeller", costs.by_labeller)]
    if costs.agreement:
        same = dict.fromkeys(one.category for one in costs.agreement if one.kappa.estimate != one.kappa.estimate)
        note = f"<p class=note>Only one label was given in {escape(', '.join(same))}.</p>" if same else ""
        found += ["<h3>Agreement, Cohen's kappa</h3>", agreement_table(costs), note]
    return "".join(found)
