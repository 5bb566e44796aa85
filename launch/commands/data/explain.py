"""`triaxial explain`: the way of a file, URL or document through preparation, and each step of a run that reads it."""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.commands.data.prepare import import_packages
from launch.processes.terminal import printable, table_console, work_progress
from launch.reports.written import STANDARD_OUTPUT, add_json_option, json_destination

if TYPE_CHECKING:
    from rich.console import Console

    from launch.runs.trail import TracedDocument, Trail

_SHOWN_STEPS = 12  # of a document; --json has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory such as runs/demo")
    parser.add_argument("source", metavar="FILE_URL_OR_ID", help="an input file, the URL of a page, or a document's id")
    parser.add_argument(
        "--work", type=Path, metavar="WORK", help="the work folder of `triaxial prepare` (default: CORPUS/work)"
    )
    add_json_option(parser, "one JSON object for each document that the run reads")
    parser.epilog = (
        "The reverse, from a step to its documents: triaxial data audit RUN --step N --source. "
        'If the data has moved: --data.train \'[{ path = "elsewhere/train", name = "web" }]\''
    )
    parser.set_defaults(takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    import_packages()
    from launch.runs.audited import open_audited_run
    from launch.runs.trail import follow

    with json_destination(args.json, indent=None) as emit:
        with work_progress() as progress:
            progress.start("opening the run")
            audited = open_audited_run(args.run, args.overrides, rank=None, text=False)

            def watch(title: str) -> Callable[[int, int], None]:
                progress.start(title)
                return lambda done, total: progress.update(done, total=total)

            trails = follow(audited, args.source, work=args.work, watch=watch)
        for document in (document for trail in trails for document in trail.documents):
            emit(asdict(document))
        if args.json != STANDARD_OUTPUT:
            for trail in trails:
                _show(trail, args.source, table_console())
    return 0


def _show(trail: "Trail", source: str, console: "Console") -> None:
    from data_prep.corpus.corpus import read_corpus
    from data_prep.corpus.split import SplitConfig
    from data_prep.reports.table import show_fates, show_file

    used: dict[str, Any] = read_corpus(trail.folder)["recipe"]["output"]
    split = SplitConfig(used["validation_fraction"], used["seed"])
    (show_file if Path(source).is_file() else show_fates)(trail.fates, split, console)
    if not trail.documents:
        console.print("no step of the run reads it", highlight=False)
    for document in trail.documents:
        console.print(_line(document), highlight=False, markup=False, soft_wrap=True)


def _line(document: "TracedDocument") -> str:
    """One line: the document, and the steps that have read it and will read it."""
    past = sorted({reading.step for reading in document.readings if reading.is_past})
    planned = sorted({reading.step for reading in document.readings if not reading.is_past})
    parts = [f"{words} {_steps(steps)}" for words, steps in (("read at", past), ("planned for", planned)) if steps]
    name = printable(f"{document.corpus}: document {document.document:,} ({document.id})")
    return f"{name}: {'; '.join(parts) or 'no step reads it'}"


def _steps(steps: list[int]) -> str:
    shown = ", ".join(f"{step:,}" for step in steps[:_SHOWN_STEPS])
    more = f" and {len(steps) - _SHOWN_STEPS:,} more" if len(steps) > _SHOWN_STEPS else ""
    return f"step{'s' if len(steps) > 1 else ''} {shown}{more}"
