"""`triaxial moderate labels`: read labelled texts of any form, merge labellers, count labels, and write our form."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from gpt.errors import ConfigError, escaped
from gpt.moderation.label_files import LabelCounts, read_labelled, write_labelled
from gpt.moderation.label_records import parse_label_map
from gpt.moderation.labels import LabelledText, contradiction_error, label_states, merged
from gpt.moderation.taxonomy import Taxonomy, read_taxonomy
from gpt.telemetry.screen import counted
from gpt.token_files.label_states import NEGATIVE, POSITIVE, contradictions, with_ancestors
from launch.processes.terminal import table_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="JSON lines, CSV or Parquet; .gz too")
    parser.add_argument(
        "--taxonomy", type=Path, required=True, metavar="FILE", help="a TOML file, or the name of a shipped one"
    )
    parser.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="FIELD=CATEGORY",
        help="take the labels of a category from a field; FIELD:VALUE=CATEGORY is positive where the field has VALUE; "
        "repeat it",
    )
    parser.add_argument("--text-field", default="", metavar="FIELD", help="the field of the texts (default: text, ...)")
    parser.add_argument("--id-field", default="", metavar="FIELD", help="the field of the ids (default: id, if any)")
    parser.add_argument(
        "--merge",
        choices=("majority", "any", "unanimous"),
        default="majority",
        help="the label of a text with several labellers (default: %(default)s; ties are unknown)",
    )
    parser.add_argument(
        "--contradictions",
        choices=("refuse", "drop"),
        default="refuse",
        help="a category is positive, and one that contains it is negative: stop, or leave the text out",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE.jsonl", help="write all texts, one line each; no text is printed"
    )


def run(args: argparse.Namespace) -> int:
    taxonomy = read_taxonomy(args.taxonomy)
    names = parse_label_map(args.map, taxonomy, text=args.text_field, id=args.id_field)
    counts = LabelCounts()
    lines = [one for path in args.files for one in read_labelled(path, taxonomy, names=names, counts=counts)]
    texts = merged(lines, rule=args.merge)
    wrong = contradictions(label_states(texts, taxonomy), taxonomy.parents)
    if wrong.any() and args.contradictions == "refuse":
        raise contradiction_error(wrong, texts, taxonomy)
    kept = [one for one, marks in zip(texts, wrong, strict=True) if not marks.any()]
    if not counts.lines:
        raise ConfigError(f"{', '.join(map(str, args.files))}: no records. Name a file of labelled texts")
    if not kept and texts:
        raise ConfigError(f"no text is left: each of {len(texts):,} contradicts {taxonomy.label}. Correct their labels")
    if not any(one.labels for one in kept):
        raise ConfigError(f"no record has a label of {taxonomy.label}. Name the fields of the labels with --map")
    table_console().print(counts_table(kept, taxonomy))
    print(f"{counted(counts.lines, 'record')}, {len(lines):,} with a text, {counted(len(texts), 'different id')}")
    for n, noun, what in (
        (counts.without_text, "record", "left out for want of a text"),
        (counts.without_labels, "record", "without a known label"),
        (len(texts) - len(kept), "text", "left out for contradicting the taxonomy"),
    ):
        if n:
            print(f"note: {counted(n, noun)} {what}")
    for line in one_class_notes(kept, taxonomy):
        print(escaped(line))
    if args.output is not None:
        write_labelled(args.output, kept, taxonomy)
        print(f"wrote {counted(len(kept), 'text')} to {args.output}")
    return 0


def counts_table(texts: Sequence[LabelledText], taxonomy: Taxonomy) -> Table:
    """Positive, negative and unknown labels of each category; a positive child counts for its parents."""
    states = with_ancestors(label_states(texts, taxonomy), taxonomy.parents)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("category")
    for name in ("positive", "negative", "unknown", "share of known"):
        table.add_column(name, justify="right")
    for name, column in zip(taxonomy.ids, states.T, strict=True):
        positive, negative = int((column == POSITIVE).sum()), int((column == NEGATIVE).sum())
        known = positive + negative
        share = f"{positive / known:.1%}" if known else ""
        cells = (name, f"{positive:,}", f"{negative:,}", f"{len(texts) - known:,}", share)
        table.add_row(*map(Text, cells))
    return table


def one_class_notes(texts: Sequence[LabelledText], taxonomy: Taxonomy) -> list[str]:
    """Lines that name the categories with only positive, only negative or no known labels."""
    states = with_ancestors(label_states(texts, taxonomy), taxonomy.parents)
    found: dict[str, list[str]] = {"only positive labels": [], "only negative labels": [], "no known label": []}
    for name, column in zip(taxonomy.ids, states.T, strict=True):
        has_positive, has_negative = bool(np.any(column == POSITIVE)), bool(np.any(column == NEGATIVE))
        if not (has_positive and has_negative):
            kind = "only positive labels" if has_positive else "only negative labels"
            found[kind if has_positive or has_negative else "no known label"].append(name)
    return [
        f"note: {kind} of {', '.join(names)}: a classifier cannot learn {'it' if len(names) == 1 else 'them'}"
        for kind, names in found.items()
        if names
    ]
