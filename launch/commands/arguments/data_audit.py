"""The arguments of `triaxial data audit`."""

import argparse
from pathlib import Path

from launch.reports.written import add_json_option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory such as runs/demo")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--step", metavar="N", help="a past or future step, as in metrics.jsonl")
    which.add_argument("--steps", metavar="A-B", help="steps A to B, both included")
    which.add_argument("--positions", metavar="A-B", help="positions in the order of the data, read or skipped")
    parser.add_argument(
        "--rank",
        metavar="R[/N]",
        help="only sequences of data rank R, in the newest checkpoint's layout or with N data ranks",
    )
    parser.add_argument("--text", action="store_true", help="show the start of each part of a sequence")
    parser.add_argument(
        "--source",
        nargs="?",
        const="",
        metavar="WORK",
        help="name the URL or id of each document, from the work folder of `triaxial prepare` (default: CORPUS/work)",
    )
    add_json_option(parser, "one JSON object for each sequence", was_switch=True)
    parser.epilog = 'If the data has moved: --data.train \'[{ path = "elsewhere/train", name = "web" }]\''
    parser.set_defaults(takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    with args.imports():
        from launch.commands.data import audit

    return audit.run(args)
