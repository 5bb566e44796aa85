"""`triaxial prepare`: web archives or text files to token files as a recipe says; the stages are in data_prep."""

import argparse
import os
from pathlib import Path

from rich.console import Console

from gpt.errors import ConfigError, import_extra
from launch.recipe import apply_overrides, build, read_toml

# Of the extra `data`.
DATA_PACKAGES = ("brotli", "isal", "resiliparse", "pycld2", "pyarrow", "zstandard", "xxhash", "mmh3")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments; every key of the recipe can be overridden beside them."""
    parser.add_argument("recipe", type=Path, help="TOML file, for example launch/recipes/demo_corpus.toml")
    parser.add_argument("--workers", type=int, default=None, metavar="N", help="worker processes (default: all cores)")
    parser.add_argument("--explain", metavar="DOC_ID", help="run nothing: say where a document of the last run went")
    parser.epilog = "Override any key of the recipe with --section.key VALUE, for example --output.folder data/mine"
    parser.set_defaults(takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    """Prepare the corpus, then print the table of documents and the paths of the files."""
    for module in DATA_PACKAGES:  # now, and not when the stage that needs it comes
        import_extra(module, extra="data")
    from data_prep.explain import explain
    from data_prep.pipeline import prepare
    from data_prep.progress import Progress
    from data_prep.recipe import PrepareConfig
    from data_prep.report import show, show_fates

    n_workers = len(os.sched_getaffinity(0)) if args.workers is None else args.workers
    if n_workers < 1:
        raise ConfigError(f"--workers {n_workers} must be at least 1")
    console = Console(emoji=False)  # ":x:" in a path or an id is no picture
    if not console.is_terminal:
        console = Console(width=140, emoji=False)  # a pipe has no width, and the default 80 breaks rows
    config = build(PrepareConfig, apply_overrides(read_toml(args.recipe), args.overrides), where="")
    if args.explain is not None:
        show_fates(explain(config.output.work_folder, args.explain), config, console)
        return 0
    show(prepare(config, n_workers=n_workers, progress=Progress(console)), config.output.work_folder, console)
    if config.output.url is not None:
        console.print(f"copied to {config.output.url}", highlight=False, soft_wrap=True)
    return 0
