"""`triaxial moderate heads`: fit a run's linear heads again to labelled texts, in seconds."""

import argparse
import time
from pathlib import Path

from launch.moderation.decisions import read_decisions
from launch.moderation.loop.joined import labelled_texts
from launch.moderation.open_run import load_classifier
from launch.moderation.refit import check_linear, fit_to_texts, publish_heads
from launch.runs.saved_run import add_device_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="a classifier's run directory, with objective.head linear"
    )
    parser.add_argument(
        "--labels", type=Path, nargs="+", required=True, metavar="FILE", help="labelled texts, of all labellers"
    )
    parser.add_argument(
        "--l2",
        type=float,
        default=100.0,
        metavar="L",
        help="penalty of the weights, for features of deviation 1 (default: %(default)g)",
    )
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> int:
    opened = load_classifier(args.run, device=args.device, dtype=args.dtype, features=True)
    check_linear(opened)
    texts = [one for one in labelled_texts(args.labels, opened.taxonomy) if one.labels]
    began = time.monotonic()
    fitted = fit_to_texts(opened, texts, l2=args.l2)
    path = publish_heads(opened, fitted, l2=args.l2, n_texts=len(texts))
    known = ", ".join(f"{one} {n:,}" for one, n in zip(opened.categories, fitted.n_known, strict=True))
    print(f"fitted the heads to {len(texts):,} texts in {time.monotonic() - began:.1f} s; known labels: {known}")
    print(f"published {path}")
    if read_decisions(opened.run_directory, opened.categories).calibrators:
        print("note: the calibration in the run is that of the heads before; run `triaxial moderate calibrate` again")
    return 0
