"""`triaxial moderate taxonomy`: check a taxonomy, and show its categories."""

import argparse
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from gpt.errors import escaped
from gpt.moderation.taxonomy import Taxonomy, read_taxonomy
from launch.processes.terminal import table_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="check a taxonomy, and show its categories")
    check.add_argument("taxonomy", type=Path, help="a TOML file, or the name of a shipped one: moderation_openai")


def run(args: argparse.Namespace) -> int:
    taxonomy = read_taxonomy(args.taxonomy)
    table_console().print(categories_table(taxonomy))
    print(f"{escaped(taxonomy.label)}: {len(taxonomy.ids)} categories, digest {taxonomy.digest[:16]}")
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
