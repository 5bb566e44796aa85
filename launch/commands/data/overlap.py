"""`triaxial prepare overlap`: mark the examples of evaluation sets that occur in training data. Removes nothing."""

import argparse
from pathlib import Path

from launch.commands.data.prepare import import_packages
from launch.config.recipe import apply_overrides, build, find_recipe, read_toml
from launch.processes.terminal import table_console, worker_count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments. Every key of the recipe can be overridden as well."""
    parser.add_argument("recipe", type=Path, help="TOML file; docs/guides/data/overlap.md shows one")
    parser.add_argument("--workers", type=int, default=None, metavar="N", help="worker processes (default: all cores)")
    parser.epilog = "Override any key of the recipe with --section.key VALUE, for example --output.folder runs/overlap"
    parser.set_defaults(takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    """Mark the examples, then print the table and the names of the files."""
    import_packages(("zstandard", "xxhash"))
    from data_prep.decontamination.overlap import EXAMPLES_FILE, SUMMARY_FILE, OverlapConfig, analyse
    from data_prep.execution.progress import ProgressBars
    from data_prep.reports.table import show_overlap

    n_workers = worker_count(args.workers)
    console = table_console()
    config = build(OverlapConfig, apply_overrides(read_toml(find_recipe(str(args.recipe))), args.overrides), where="")
    show_overlap(analyse(config, n_workers=n_workers, progress=ProgressBars(console)), console)
    for name in (EXAMPLES_FILE, SUMMARY_FILE):
        console.print(f"written: {config.output.folder / name}", highlight=False, soft_wrap=True)
    return 0
