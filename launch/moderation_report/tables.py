"""The tables of the report: measures, confusion, cost of labels. What comes from files is escaped."""

import math
from collections.abc import Sequence
from html import escape

from gpt.evaluation.intervals import Interval
from gpt.moderation.measures.summary import CategoryMeasures
from launch.moderation_report.costs import LabelCost, LabelCosts
from launch.moderation_report.measured import ReportFigures

COUNTS = ("labels", "positive")  # columns that a phone leaves out of the table of measures


def measures_table(figures: ReportFigures, titles: dict[str, str]) -> str:
    """One row for each category and version."""
    two = len(figures.versions) == 2
    heads = ["category", "labels", "positive", *(["version"] if two else [])]
    heads += ["AUPRC", "AUROC", "F1", "precision", "recall", "threshold", "calibration error"]
    rows, span = [], f" rowspan={len(figures.versions)}"
    for i, name in enumerate(figures.names):
        for k, version in enumerate(figures.versions):
            one = version.categories[i].measures
            title = f"{escape(name)}<small>{escape(titles.get(name, ''))}</small>"
            first = (
                f"<td class=word{span}>{title}</td>"
                f"<td class=count{span}>{one.known:,}</td><td class=count{span}>{one.positives:,}</td>"
                if k == 0
                else ""
            )
            who = f"<td class=word><i class=s{k}></i>{escape(version.name)}</td>" if two else ""
            cells = "".join(f"<td>{_stacked(value)}</td>" for value in (one.auprc, one.auroc, one.f1))
            cells += f"<td>{_stacked(one.precision)}</td><td>{_stacked(one.recall)}</td>"
            limit = "" if name == "any" else f"{one.threshold:.2f}"
            error = "" if math.isnan(one.calibration_error) else f"{one.calibration_error:.3f}"
            rows.append(f'<tr class="{"" if k else "first"}">{first}{who}{cells}<td>{limit}</td><td>{error}</td></tr>')
    return table(heads, rows, words=("category", "version"), style="measures")


def gains_table(figures: ReportFigures) -> str:
    """AUPRC of the second version minus that of the first."""
    rows = []
    for name, gain in zip(figures.names, figures.gains, strict=True):
        verdict = "too few positives to say" if math.isnan(gain.low) else "no clear difference"
        if gain.low > 0:
            verdict = "better"
        elif gain.high < 0:
            verdict = "worse"
        sign = "" if math.isnan(gain.estimate) else f"{gain.estimate:+.3f}"
        bounds = "" if math.isnan(gain.low) else f"{gain.low:+.3f} to {gain.high:+.3f}"
        rows.append(
            f"<tr><td class=word>{escape(name)}</td><td>{sign}</td><td>{bounds}</td><td class=word>{verdict}</td></tr>"
        )
    return table(["category", "gain", "95%", "verdict"], rows, words=("category", "verdict"))


def confusion_card(measures: CategoryMeasures, name: str) -> str:
    """Labels against decisions of one category: four counts, with their share of the row."""
    counts = measures.confusion
    rows = []
    for label, flagged, passed in (
        ("positive", counts.true_positives, counts.false_negatives),
        ("negative", counts.false_positives, counts.true_negatives),
    ):
        total = flagged + passed
        right = (True, False) if label == "positive" else (False, True)
        cells = "".join(_count(n, total, is_right) for n, is_right in zip((flagged, passed), right, strict=True))
        rows.append(f"<tr><th scope=row>{label}</th>{cells}</tr>")
    head = "<tr><td></td><th>flagged</th><th>passed</th></tr>"
    return f"<div class=confusion><h3>{escape(name)}</h3><table>{head}{''.join(rows)}</table></div>"


def _count(n: float, total: float, is_right: bool) -> str:
    share = n / total if total else 0.0
    style = f'class="{"right" if is_right else "wrong"}" style="--p:{100 * share:.0f}%"'
    return f"<td {style}>{n:,.0f}<small>{f'{share:.1%}' if total else ''}</small></td>"


def cost_table(title: str, costs: Sequence[LabelCost]) -> str:
    """Labels, positives and time, one row for each pipeline or labeller; the best yield of positives as a bar."""
    most = max((one.positive_share for one in costs), default=0.0) or 1.0
    rows = []
    for one in costs:
        bar = f"<td class=bar><div class=s2 style='width:{100 * one.positive_share / most:.1f}%'></div></td>"
        rows.append(
            f"<tr><td class=word>{escape(one.name)}</td><td>{one.labels:,}</td><td>{one.positives:,}</td>"
            f"<td>{one.positive_share:.1%}</td>{bar}<td>{_seconds(one.seconds_a_label)}</td>"
            f"<td>{_seconds(one.seconds_a_positive)}</td><td>{one.skipped:,}</td></tr>"
        )
    heads = [title, "labels", "positive", "positives a label", "", "time a label", "time a positive", "skipped"]
    return table(heads, rows, words=(title,))


def agreement_table(costs: LabelCosts) -> str:
    """Cohen's kappa of each two labellers by category, where both labels occur."""
    rows = []
    for one in costs.agreement:
        if math.isnan(one.kappa.estimate):
            continue
        names = f"{escape(one.first)}, {escape(one.second)}"
        rows.append(
            f"<tr><td class=word>{names}</td><td class=word>{escape(one.category)}</td><td>{one.n:,}</td>"
            f"<td>{one.both:,}</td><td>{one.only_first + one.only_second:,}</td><td>{one.observed:.1%}</td>"
            f"<td>{_stacked(one.kappa)}</td></tr>"
        )
    heads = ["labellers", "category", "texts", "both positive", "one positive", "agree", "kappa"]
    return table(heads, rows, words=("labellers", "category"))


def table(heads: Sequence[str], rows: Sequence[str], *, words: Sequence[str], style: str = "plain") -> str:
    """An HTML table; the columns named in `words` are text. `heads` are plain text, `rows` HTML."""
    kinds = ["word" if one in words else "count" if one in COUNTS else "number" if one else "bar" for one in heads]
    head = "".join(f"<th class={kind}>{escape(one)}</th>" for kind, one in zip(kinds, heads, strict=True))
    return f"<div class=wide><table class={style}><tr>{head}</tr>{''.join(rows)}</table></div>"


def _stacked(interval: Interval) -> str:
    """An estimate, with its bounds in small figures below."""
    if math.isnan(interval.estimate):
        return "&ndash;"
    if math.isnan(interval.low):
        return f"{interval.estimate:.3f}<small>few positives</small>"
    return f"{interval.estimate:.3f}<small>{interval.low:.3f} to {interval.high:.3f}</small>"


def _seconds(value: float | None) -> str:
    if value is None:
        return "&ndash;"
    return f"{value:.1f} s" if value < 90 else f"{value / 60:.1f} min"
