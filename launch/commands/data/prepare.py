"""`triaxial prepare`: turn web archives or text files into token files, as a recipe says."""

import argparse
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt.errors import ConfigError, import_extra
from gpt.telemetry.output import own_output
from launch.config.prepare_config import moderation_of, prepare_config
from launch.config.recipe import apply_overrides, find_recipe, read_toml
from launch.processes.environment import ray_cluster, slurm_array_share
from launch.processes.terminal import table_console

if TYPE_CHECKING:
    from rich.console import Console

    from data_prep.recipe import PrepareConfig

# Packages of the extra `data`.
DATA_PACKAGES = ("brotli", "isal", "resiliparse", "pycld2", "pyarrow", "zstandard", "xxhash", "mmh3")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments. Every key of the recipe can be overridden as well."""
    parser.add_argument("recipe", help="a TOML file, or the name of a shipped one, such as crawl_gpt3")
    how = parser.add_argument_group("execution (docs/guides/data/running.md)")
    how.add_argument("--workers", type=int, default=None, metavar="N", help="parallel tasks (default: all cores)")
    how.add_argument(
        "--executor",
        choices=("local", "ray", "slurm-array"),
        default="local",
        help="processes of this machine (default), a Ray cluster, or this element's share of a Slurm array",
    )
    how.add_argument("--ray-address", metavar="HOST:PORT", help="the Ray cluster to join (default: a new one here)")
    how.add_argument("--share", metavar="K/N", help="do part K of N of each stage, in parallel with the other parts")
    how.add_argument(
        "--share-timeout",
        type=float,
        default=60.0,
        metavar="MINUTES",
        help="stop if another share gives no heartbeat for this long (default: %(default).0f)",
    )
    how.add_argument(
        "--progress-every",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="without a terminal, print a line at this interval (default: %(default).0f)",
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--explain",
        metavar="DOC_ID_FILE_OR_URL",
        help="run nothing: show what happened to a document, or to those of an input file or URL, in the last run",
    )
    only.add_argument(
        "--dropped",
        nargs="?",
        const="",
        metavar="STEP",
        help="run nothing: show examples of the documents that the last run dropped, by reason",
    )
    only.add_argument("--status", action="store_true", help="run nothing: show what is done and who is working")
    only.add_argument("--dry-run", action="store_true", help="run nothing: show what would be done, its size and time")
    parser.epilog = "Override any key of the recipe with --section.key VALUE, for example --output.folder data/mine"
    parser.set_defaults(takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    """Prepare the corpus, then print the table of documents and the paths of the files."""
    import_packages()  # check now, not when the first stage needs the package
    from data_prep.execution.progress import ProgressBars, say
    from data_prep.pipeline import prepare
    from data_prep.plan import plan
    from data_prep.reports.dropped import dropped_documents
    from data_prep.reports.plan import show_dry_run, show_status
    from data_prep.reports.table import show, show_dropped, show_lost

    _check(args)
    console = table_console()
    config = prepare_config(apply_overrides(read_toml(find_recipe(args.recipe)), args.overrides))
    if args.explain is not None:
        _explain(args.explain, config, console)
    elif args.dropped is not None:
        show_dropped(dropped_documents(config.output.work_folder, args.dropped), console)
    elif args.status:
        show_status(plan(config, moderation_of(config)), config, console)
    elif args.dry_run:
        n_workers = args.workers or len(os.sched_getaffinity(0))
        show_dry_run(plan(config, moderation_of(config)), config, console, n_workers=n_workers)
    else:
        own_output(waits=False)  # a run of days must not end or block if its terminal does
        how = {**_how(args, config.output.work_folder), "moderation": moderation_of(config)}
        progress = ProgressBars(console, every_s=args.progress_every)
        on_error = functools.partial(show_lost, console=console)
        prepared = prepare(config, n_workers=args.workers, progress=progress, on_error=on_error, **how)
        share = how.get("share")
        if share is None or share.number == 1:
            show(prepared, config.output.work_folder, console)
            if config.output.url is not None:
                say(console, f"copied to {config.output.url}")
        else:
            say(console, f"share {share} is done; share 1/{share.count} writes the corpus and the report")
    return 0


def import_packages(names: Sequence[str] = DATA_PACKAGES) -> None:
    """ConfigError with the pip command if a package of the extra `data` is missing."""
    for module in names:
        import_extra(module, extra="data")


def _explain(wanted: str, config: "PrepareConfig", console: "Console") -> None:
    """Print the way of a document, or of those of an input file or URL."""
    from data_prep.corpus.corpus import read_corpus
    from data_prep.corpus.split import SplitConfig
    from data_prep.reports.explain import explain, explain_file, explain_url
    from data_prep.reports.table import show_fates, show_file

    try:  # the share that was used, which differs from the recipe's if there are few documents
        used = read_corpus(config.output.corpus_folder)["recipe"]["output"]
        split = SplitConfig(used["validation_fraction"], used["seed"])
    except (ConfigError, KeyError, TypeError):
        split = config.output.split
    if Path(wanted).is_file():
        sections = config.input, config.conversations
        fates = explain_file(config.output.work_folder, Path(wanted), *sections, labels=config.labels)
        show_file(fates, split, console)
    else:
        find = explain_url if wanted.startswith(("http://", "https://")) else explain
        show_fates(find(config.output.work_folder, wanted), split, console)


def _check(args: argparse.Namespace) -> None:
    if args.workers is not None and args.workers < 1:
        raise ConfigError(f"--workers {args.workers} is invalid: must be at least 1")
    if args.progress_every <= 0:
        raise ConfigError(f"--progress-every {args.progress_every:g} is invalid: must be above 0 s, for example 30")
    if args.share_timeout <= 0:
        raise ConfigError(f"--share-timeout {args.share_timeout:g} is invalid: must be above 0 minutes, for example 60")
    if args.ray_address is not None and args.executor != "ray":
        raise ConfigError(f"--ray-address {args.ray_address} needs --executor ray, not --executor {args.executor}")
    if args.share is not None and args.executor == "ray":
        raise ConfigError(f"--share {args.share} needs the local executor: Ray divides the tasks itself")


def _how(args: argparse.Namespace, work_folder: Path) -> dict[str, Any]:
    """The keyword arguments of `prepare` for the executor and the share."""
    from data_prep.execution.shares import Share

    if args.executor == "ray":
        from data_prep.execution.ray_workers import RayWorkers

        address = ray_cluster(args.ray_address)
        import_extra("ray", extra="ray")
        return {"executor": functools.partial(RayWorkers, folder=work_folder, address=address)}
    if args.share is not None:
        share = Share.parse(args.share)
    elif args.executor == "slurm-array":
        share = Share(*slurm_array_share())
    else:
        return {}
    return {"share": share, "share_timeout_s": args.share_timeout * 60}
