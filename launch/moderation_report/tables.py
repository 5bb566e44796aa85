"""The tables of the report: measures, confusion, functional tests, counterfactual gaps, cost of labels."""

import math
from collections.abc import Sequence
from html import escape

from gpt.evaluation.intervals import Interval
from gpt.moderation.measures.summary import CategoryMeasures
from launch.moderation_report.costs import LabelCost, LabelCosts
from launch.moderation_report.measured import ReportFigures
from launch.moderation_report.probes import FunctionalCell, FunctionalSuite, GapOfCategory

MAX_WORDS = 14
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
    return table(["category", "gain", "95%", "verdict"], rows, words=("category",))


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


def heat_map(suites: Sequence[tuple[str, FunctionalSuite]]) -> str:
    """Functions as rows, versions and targets as columns. A cell is darker the more decisions are wrong.

    `suites`: (version, suite), the same suite of one or two versions. Targets are those of the last version.
    """
    last = suites[-1][1]
    targets = [target for target in last.targets if target]
    functions = list(dict.fromkeys(function for _, suite in suites for function in suite.functions))
    heads = [name for name, _ in suites] if len(suites) > 1 else ["all cases"]
    head = "".join(f"<th><span>{escape(one)}</span></th>" for one in (*heads, *targets))
    rows = []
    for function in functions:
        cells = [suite.cells.get((function, "")) for _, suite in suites]
        cells += [last.cells.get((function, target)) for target in targets]
        rendered = "".join(map(_heat, cells))
        rows.append(f"<tr><th scope=row>{escape(function)}</th>{rendered}</tr>")
    return f"<div class=wide><table class=heats><tr><td></td>{head}</tr>{''.join(rows)}</table></div>"


def _heat(cell: FunctionalCell | None) -> str:
    if cell is None or not cell.cases:
        return "<td></td>"
    wrong = f"--p:{70 * (1 - cell.share):.0f}%"
    title = f"{cell.right:,} of {cell.cases:,} right"
    return f'<td class=heat style="{wrong}" title="{title}">{100 * cell.share:.0f}</td>'


def gaps_table(found: Sequence[tuple[str, Sequence[GapOfCategory]]]) -> str:
    """Counterfactual gaps by category and version."""
    two = len(found) > 1
    rows = [
        f"<tr><td class=word>{escape(one.category)}</td>"
        + (f"<td class=word><i class=s{k}></i>{escape(name)}</td>" if two else "")
        + f"<td>{one.sentences:,}</td><td>{_number(one.mean_range)}</td><td>{_number(one.worst_range)}</td>"
        f"<td>{_share(one.false_positive_share)}</td></tr>"
        for category in dict.fromkeys(one.category for _, gaps in found for one in gaps)
        for k, (name, gaps) in enumerate(found)
        for one in gaps
        if one.category == category
    ]
    heads = ["category", *(["version"] if two else []), "sentences", "mean range", "worst range", "negatives flagged"]
    return table(heads, rows, words=("category", "version"))


def word_bars(gap: GapOfCategory) -> str:
    """The words with the largest gaps as bars to the left (lower scores) and right (higher scores)."""
    words = sorted(gap.words[:MAX_WORDS], key=lambda one: -one[1])
    most = max((abs(value) for _, value, _ in words), default=0.0) or 1.0
    rows = []
    for word, value, sentences in words:
        width = 50 * abs(value) / most
        side = f"left:50%;width:{width:.1f}%" if value >= 0 else f"left:{50 - width:.1f}%;width:{width:.1f}%"
        bar = f'<div class="{"s1" if value >= 0 else "s5"}" style="{side}"></div>'
        cells = f"<td>{value:+.3f}</td><td class=gap>{bar}</td><td>{sentences:,}</td>"
        rows.append(f"<tr><td class=word>{escape(word)}</td>{cells}</tr>")
    return table(["word", "gap", "lower or higher", "sentences"], rows, words=("word",))


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


def _number(value: float | None) -> str:
    return "&ndash;" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "&ndash;" if value is None else f"{value:.1%}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "&ndash;"
    return f"{value:.1f} s" if value < 90 else f"{value / 60:.1f} min"
