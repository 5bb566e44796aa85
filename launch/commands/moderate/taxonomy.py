"""`triaxial moderate taxonomy`: check a taxonomy, write its page for labellers, or migrate labels to the next one."""

import argparse
from itertools import pairwise
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from gpt.errors import ConfigError, escaped
from gpt.moderation.label_files import LabelCounts, read_labelled, write_labelled
from gpt.moderation.migration import check_complete, migrated
from gpt.moderation.taxonomy import Taxonomy, read_taxonomy
from gpt.telemetry.screen import counted
from launch.labelling.instructions import instructions_page
from launch.processes.terminal import table_console
from launch.reports.written import check_destination, write_page

_FILE = "a TOML file, or the name of a shipped one: moderation_openai"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="check a taxonomy, and show its categories")
    check.add_argument("taxonomy", type=Path, help=_FILE)
    check.add_argument("--before", type=Path, metavar="FILE", help="the version before: check that all of it migrates")
    page = actions.add_parser("page", help="write the instructions for labellers as an HTML page")
    page.add_argument("taxonomy", type=Path, help=_FILE)
    page.add_argument("--output", type=Path, required=True, metavar="FILE.html")
    migrate = actions.add_parser("migrate", help="turn a file of labels into labels of a later version")
    migrate.add_argument("labels", type=Path, help="a file of labelled texts")
    migrate.add_argument(
        "--versions",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="the taxonomy of the labels, then each later version in its order",
    )
    migrate.add_argument("--output", type=Path, required=True, metavar="FILE.jsonl")


def run(args: argparse.Namespace) -> int:
    if args.action == "migrate":
        return _migrate(args)
    if args.action == "page":
        check_destination("--output", args.output)
    taxonomy = read_taxonomy(args.taxonomy)
    if args.action == "page":
        write_page("--output", args.output, instructions_page(taxonomy))
        print(f"wrote {args.output}")
        return 0
    if args.before is not None:
        check_complete(read_taxonomy(args.before), taxonomy)
    table_console().print(categories_table(taxonomy))
    print(f"{escaped(taxonomy.label)}: {len(taxonomy.ids)} categories, digest {taxonomy.digest[:16]}")
    return 0


def _migrate(args: argparse.Namespace) -> int:
    check_destination("--output", args.output)
    versions = [read_taxonomy(path) for path in args.versions]
    if len(versions) < 2:
        raise ConfigError("--versions needs two files or more. Give the taxonomy of the labels, then the next version")
    for old, new in pairwise(versions):
        check_complete(old, new)
    counts = LabelCounts()
    texts = list(read_labelled(args.labels, versions[0], counts=counts))
    before = sum(len(one.labels) for one in texts)
    for version in versions[1:]:
        texts = migrated(texts, version)
    write_labelled(args.output, texts, versions[-1])
    after = sum(len(one.labels) for one in texts)
    print(
        f"{escaped(versions[0].label)} to {escaped(versions[-1].label)}: {counted(len(texts), 'text')}, "
        f"{before:,} known labels before, {after:,} after"
    )
    if counts.without_text:
        print(f"note: {counted(counts.without_text, 'record')} left out for want of a text")
    return 0


def categories_table(taxonomy: Taxonomy) -> Table:
    """Id, title, parent, severity and number of examples of each category."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("id", "title", "parent"):
        table.add_column(name)
    for name in ("severity", "examples"):
        table.add_column(name, justify="right")
    for one in taxonomy.categories:
        severity = "" if one.severity is None else str(one.severity)
        cells = (one.id, escaped(one.title), one.parent or "", severity, str(len(one.examples)))
        table.add_row(*map(Text, cells))
    return table
