"""The parts of the report that show probes: functional tests, counterfactuals, perturbations, slices, reduction."""

from collections.abc import Sequence
from html import escape

from launch.moderation_report.probe_tables import (
    gaps_table,
    heat_map,
    perturbations_map,
    reduction_table,
    slices_table,
    word_bars,
)
from launch.moderation_report.probes import FunctionalSuite, GapOfCategory, ProbeResults

Named = Sequence[tuple[str, ProbeResults]]  # each file of results with its version


def probes_part(names: Sequence[str], probes: Sequence[Sequence[ProbeResults]]) -> str:
    """The HTML of all probes; "" without any. `names`: the versions; `probes`: the files of each."""
    found = [(name, one) for name, own in zip(names, probes, strict=False) for one in own]
    return "".join((_functional(found), _gaps(found), _perturbations(found), _slices(found), _reduction(found)))


def _functional(found: Named) -> str:
    suites: dict[tuple[str, str], list[tuple[str, FunctionalSuite]]] = {}
    for name, probes in found:
        for suite in probes.functional:
            suites.setdefault((suite.suite, suite.category), []).append((name, suite))
    if not suites:
        return ""
    maps = "".join(
        f"<h3>{escape(suite or 'functional tests')}, {escape(category)}</h3>{heat_map(own)}"
        for (suite, category), own in suites.items()
    )
    note = "Percent of right decisions at the threshold. A darker cell has more wrong ones."
    return f"<h2>Functional tests</h2><p class=note>{note}</p>{maps}"


def _gaps(found: Named) -> str:
    gaps: dict[str, list[GapOfCategory]] = {}
    for name, probes in found:
        if probes.gaps:
            gaps.setdefault(name, []).extend(probes.gaps)
    if not gaps:
        return ""
    newest = list(gaps)[-1]
    widest = max(gaps[newest], key=lambda one: one.mean_range or 0.0)
    note = (
        "Sentences that differ in one word should have equal scores. The range of such a set is its largest score "
        "minus its smallest. Negatives flagged: harmless sentences above the threshold."
    )
    bars = f"<h3>Words with the largest gaps: {escape(widest.category)}, {escape(newest)}</h3>{word_bars(widest)}"
    table = gaps_table(list(gaps.items()))
    return f"<h2>Counterfactuals</h2><p class=note>{note}</p>{table}{bars if widest.words else ''}"


def _perturbations(found: Named) -> str:
    own = [(name, probes) for name, probes in found if probes.still_flagged]
    if not own:
        return ""
    note = "Percent of the flagged texts that are still flagged after a rewriting. A darker cell has more that escape."
    return f"<h2>Perturbations</h2><p class=note>{note}</p>{perturbations_map(own)}"


def _slices(found: Named) -> str:
    own = [(name, probes.slices) for name, probes in found if probes.slices]
    if not own:
        return ""
    name, slices = own[-1]
    note = f"AUPRC of {escape(name)} on the labelled texts of each group, and by their length in characters."
    return f"<h2>Slices</h2><p class=note>{note}</p>{slices_table(slices)}"


def _reduction(found: Named) -> str:
    own = [(name, one) for name, probes in found for one in probes.reduced]
    if not own:
        return ""
    note = "Words are removed while the score stays high. If few characters are left, single words decide. Medians."
    return f"<h2>Input reduction</h2><p class=note>{note}</p>{reduction_table(own)}"
