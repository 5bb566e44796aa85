"""The tables of probes: functional tests, perturbations, counterfactual gaps, slices, reduction. Names are escaped."""

from collections.abc import Sequence
from html import escape

from launch.moderation_report.probes import (
    FunctionalCell,
    FunctionalSuite,
    GapOfCategory,
    ProbeResults,
    ReducedTexts,
    SliceOfTexts,
)
from launch.moderation_report.tables import table

MAX_WORDS = 14


def heat_map(suites: Sequence[tuple[str, FunctionalSuite]]) -> str:
    """Functions as rows, versions and targets as columns. A cell is darker the more decisions are wrong.

    `suites`: (version, suite), the same suite of one or two versions. Targets are those of the last version.
    """
    last = suites[-1][1]
    targets = [target for target in last.targets if target]
    functions = list(dict.fromkeys(function for _, suite in suites for function in suite.functions))
    heads = [name for name, _ in suites] if len(suites) > 1 else ["all cases"]
    head = "".join(f"<th><span>{escape(one)}</span></th>" for one in (*heads, *targets))
    groups = ""
    if len(suites) > 1 and targets:  # else a column of a target would not say whose it is
        owner = f"<th colspan={len(targets)}>{escape(suites[-1][0])}, cases about</th>"
        groups = f"<tr class=groups><td></td><th colspan={len(suites)}>all cases</th>{owner}</tr>"
    rows = []
    for function in functions:
        cells = [suite.cells.get((function, "")) for _, suite in suites]
        cells += [last.cells.get((function, target)) for target in targets]
        rendered = "".join(map(_heat, cells))
        rows.append(f"<tr><th scope=row>{escape(function)}</th>{rendered}</tr>")
    return f"<div class=wide><table class=heats>{groups}<tr><td></td>{head}</tr>{''.join(rows)}</table></div>"


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


def perturbations_map(found: Sequence[tuple[str, ProbeResults]]) -> str:
    """Categories and versions as rows, perturbations as columns: percent of flagged texts that stay flagged."""
    names = list(dict.fromkeys(name for _, probes in found for _, name in probes.still_flagged))
    categories = list(dict.fromkeys(category for _, probes in found for category, _ in probes.still_flagged))
    head = "".join(f"<th><span>{escape(name)}</span></th>" for name in names)
    rows = []
    for category in categories:
        for version, probes in found:
            label = escape(f"{category}, {version}" if len(found) > 1 else category)
            cells = "".join(_heat(probes.still_flagged.get((category, name))) for name in names)
            rows.append(f"<tr><th scope=row>{label}</th>{cells}</tr>")
    return f"<div class=wide><table class=heats><tr><td></td>{head}</tr>{''.join(rows)}</table></div>"


def slices_table(slices: Sequence[SliceOfTexts]) -> str:
    """AUPRC of each category in each slice; the number of positives below it."""
    categories = list(dict.fromkeys(category for one in slices for category, *_ in one.auprc))
    rows = []
    for one in slices:
        found = {category: (estimate, positives) for category, estimate, positives in one.auprc}
        cells = []
        for category in categories:
            estimate, positives = found.get(category, (None, 0))
            cells.append(f"<td>{_number(estimate)}<small>{positives:,} positive</small></td>")
        rows.append(
            f"<tr><td class=word>{escape(one.field)}</td><td class=word>{escape(one.value)}</td><td>{one.texts:,}</td>"
            f"{''.join(cells)}</tr>"
        )
    return table(["slice", "value", "texts", *categories], rows, words=("slice", "value"))


def reduction_table(found: Sequence[tuple[str, ReducedTexts]]) -> str:
    """Median characters of the texts before and after the reduction."""
    rows = [
        f"<tr><td class=word>{escape(one.category)}</td><td class=word>{escape(version)}</td><td>{one.texts:,}</td>"
        f"<td>{one.before:,.0f}</td><td>{one.after:,.0f}</td></tr>"
        for version, one in found
    ]
    heads = ["category", "version", "texts", "characters", "characters left"]
    return table(heads, rows, words=("category", "version"))


def _number(value: float | None) -> str:
    return "&ndash;" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "&ndash;" if value is None else f"{value:.1%}"
