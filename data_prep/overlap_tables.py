"""The tables about evaluation sets: what was taken out of a corpus, what of them is in one; computes nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

_SHOWN = 5  # grams


def show_decontamination(report: Mapping[str, Any], console: Console) -> None:
    """A row a set, and the grams that were met most often."""
    columns = ("examples", "too short", "hit", "grams", "hit", "too frequent", "documents")
    table = _table("evaluation sets in the corpus", "set", columns)
    for about in report["sets"]:
        keys = ("examples", "too_short", "examples_hit", "grams", "grams_hit", "grams_ignored", "documents_hit")
        table.add_row(about["name"], *(f"{about[key]:,}" for key in keys))
    console.print(table)
    console.print(
        f"documents with text of a set: {report['documents_hit']:,}; cut and kept: {report['documents_cut']:,}, "
        f"which lost {report['characters_cut']:,} characters",
        highlight=False,
        soft_wrap=True,
    )
    for title, key in (("cut out most often", "grams_cut"), ("too frequent, left in", "grams_ignored")):
        _show_grams(title, report[key], console)


def show_overlap(summary: Mapping[str, Any], console: Console) -> None:
    """A row a set, the dirtiest first, as table C.1 of the GPT-3 paper."""
    title = f"evaluation sets against {summary['training_documents']:,} training documents"
    table = _table(title, "set", ("N", "examples", "too short", "dirty", "clean", "clean %"))
    for about in sorted(summary["sets"], key=lambda s: (s["clean_percent"], s["name"])):
        keys = ("n_words", "examples", "too_short", "dirty", "clean")
        table.add_row(about["name"], *(f"{about[key]:,}" for key in keys), f"{about['clean_percent']:.1f}")
    console.print(table)


def _show_grams(title: str, grams: Sequence[Mapping[str, Any]], console: Console) -> None:
    if not grams:
        return
    console.print(f"{title} (documents, gram):", highlight=False)
    for row in grams[:_SHOWN]:
        console.print(f"  {row['documents']:>9,}  {row['gram']}", highlight=False, markup=False, soft_wrap=True)


def _table(title: str, first: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table
