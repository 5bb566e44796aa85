"""`triaxial moderate heads`: fit a run's linear heads again to labelled texts, in seconds."""

import argparse
import time
from pathlib import Path

from gpt.telemetry.screen import counted
from launch.config.run_arguments import add_device_arguments, find_checkpoint_folder
from launch.moderation.decisions import read_decisions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="a classifier's run directory, with objective.head linear"
    )
    parser.add_argument(
        "--labels", type=Path, nargs="+", required=True, metavar="FILE", help="labelled texts, of all labellers"
    )
    parser.add_argument(
        "--l2",
        type=_penalty,
        default=100.0,
        metavar="L",
        help="penalty of the weights, for features of deviation 1; auto: for each category the one that predicts "
        "left-out texts best (default: %(default)g)",
    )
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> int:
    find_checkpoint_folder(args.run)  # raises for a wrong path
    with args.imports():
        from launch.moderation.loop.joined import labelled_texts
        from launch.moderation.open_run import load_classifier
        from launch.moderation.refit import check_linear, fit_to_texts, publish_heads

    opened = load_classifier(args.run, device=args.device, dtype=args.dtype, features=True)
    check_linear(opened)
    texts = [one for one in labelled_texts(args.labels, opened.taxonomy) if one.labels]
    began = time.monotonic()
    fitted, penalties = fit_to_texts(opened, texts, l2=args.l2)
    path = publish_heads(opened, fitted, l2=penalties, n_texts=len(texts))
    known = ", ".join(f"{one} {n:,}" for one, n in zip(opened.categories, fitted.n_known, strict=True))
    print(
        f"fitted the heads to {counted(len(texts), 'text')} in {time.monotonic() - began:.1f} s; known labels: {known}"
    )
    if args.l2 is None:
        print("chosen l2: " + ", ".join(f"{one} {penalty:g}" for one, penalty in penalties.items()))
    print(f"published {path}")
    if read_decisions(opened.run.run_directory, opened.categories).calibrators:
        print("note: the calibration in the run is that of the heads before; run `triaxial moderate calibrate` again")
    return 0


def _penalty(text: str) -> float | None:
    """A number, or None for `auto`."""
    if text == "auto":
        return None
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is invalid: must be a number above 0, or auto") from None
