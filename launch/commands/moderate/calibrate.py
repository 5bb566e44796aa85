"""`triaxial moderate calibrate`: fit calibration and thresholds on labelled texts, and save them into a run."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from gpt.errors import ConfigError
from gpt.files.atomic import replace_file
from gpt.moderation.measures.calibration import (
    KINDS,
    Calibrator,
    calibrated,
    calibrator_json,
    expected_calibration_error,
    fit,
)
from gpt.moderation.measures.ranking import Floats
from gpt.moderation.measures.thresholds import Target, Threshold, choose_threshold
from gpt.moderation.taxonomy import read_taxonomy
from launch.moderation.loop.joined import joined, labelled_texts, summary_of
from launch.processes.terminal import table_console
from launch.reports.written import add_json_option, json_destination

MIN_POSITIVES = 5  # fewer leave a category as it is


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a classifier's run directory")
    parser.add_argument(
        "--scores",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="its scores of the labelled texts, by `triaxial moderate score --raw`",
    )
    parser.add_argument(
        "--labels", type=Path, nargs="+", required=True, metavar="FILE", help="texts that did not train the classifier"
    )
    parser.add_argument("--taxonomy", type=Path, required=True, metavar="FILE", help="a TOML file, or a shipped name")
    parser.add_argument("--kind", choices=KINDS, default="temperature", help="the calibration (default: temperature)")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--precision", type=float, metavar="P", help="thresholds with most recall at this precision")
    target.add_argument("--recall", type=float, metavar="R", help="thresholds with most precision at this recall")
    parser.add_argument(
        "--sure", action="store_true", help="the lower bound of the exact 95%% interval must reach it, not the estimate"
    )
    add_json_option(parser, "calibration, thresholds and their intervals")


def run(args: argparse.Namespace) -> int:
    target, wanted = _target(args)
    if not args.run.is_dir():
        raise ConfigError(f"RUN {args.run} is no directory. Name the run directory of a classifier.")
    _check_raw(args.scores)
    taxonomy = read_taxonomy(args.taxonomy)
    found = joined(labelled_texts(args.labels, taxonomy), args.scores, taxonomy)
    calibration: dict[str, Any] = {}
    thresholds: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    with json_destination(args.json) as emit:
        for i, category in enumerate(taxonomy.ids):
            calibrator, threshold, row = _category(
                found.labels[:, i], found.scores[:, i], kind=args.kind, target=target, wanted=wanted, sure=args.sure
            )
            rows.append({"category": category, **row})
            if calibrator is not None:
                calibration[category] = calibrator_json(calibrator)
            if threshold is not None:
                thresholds[category] = threshold.threshold
        folder = args.run / "moderation"
        folder.mkdir(exist_ok=True)
        replace_file(folder / "calibration.json", json.dumps(calibration, indent=2) + "\n")
        if target is not None:
            replace_file(folder / "thresholds.json", json.dumps(thresholds, indent=2) + "\n")
        elif (folder / "thresholds.json").exists():
            print(
                "note: thresholds.json was chosen for the scores before this calibration, and stays. Choose again with "
                "--precision or --recall, or remove it"
            )
        table_console().print(_table(rows))
        for row in rows:
            if row["note"]:
                print(f"note: {row['category']}: {row['note']}")
        print(f"{len(found.texts):,} labelled texts with scores; wrote {folder}")
        emit({"texts": len(found.texts), "kind": args.kind, "calibration": calibration, "categories": rows})
    return 0


def _check_raw(paths: Sequence[Path]) -> None:
    """ConfigError: scores are calibrated already, by their summary. A calibrator is applied to raw scores."""
    for path in paths:
        if summary_of(path).get("calibrated"):
            raise ConfigError(
                f"{path} holds calibrated scores, and a calibration is fitted to raw ones. Score the texts with "
                f"`triaxial moderate score --raw`"
            )


def _target(args: argparse.Namespace) -> tuple[Target | None, float]:
    for name in ("precision", "recall"):
        value = getattr(args, name)
        if value is not None:
            if not 0 < value <= 1:
                raise ConfigError(f"--{name} {value} is invalid: it must be above 0 and at most 1. Use 0.9.")
            return ("precision" if name == "precision" else "recall"), value
    if args.sure:
        raise ConfigError("--sure is only valid with --precision or --recall.")
    return None, 0.0


def _category(
    labels: Floats, scores: Floats, *, kind: Any, target: Target | None, wanted: float, sure: bool
) -> tuple[Calibrator | None, Threshold | None, dict[str, Any]]:
    """Fit one category. The row says what was done, or why nothing was."""
    positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
    row: dict[str, Any] = {"positives": positives, "known": positives + negatives, "note": "", "threshold": None}
    if min(positives, negatives) < MIN_POSITIVES:
        row["note"] = f"{positives} positives and {negatives} negatives are too few; its scores stay as they are"
        return None, None, row
    calibrator = fit(kind, labels, scores)
    after = calibrated(scores, calibrator)
    row["error_before"] = expected_calibration_error(labels, scores)
    row["error_after"] = expected_calibration_error(labels, after)
    threshold = None if target is None else choose_threshold(labels, after, target, wanted, sure=sure)
    if threshold is not None:
        row["threshold"] = asdict(threshold)
    elif target is not None:
        row["note"] = f"no threshold reaches {target} {wanted:g}; none is set"
    return calibrator, threshold, row


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("category")
    for name in ("positives", "error before", "error after", "threshold", "precision, 95%", "recall, 95%"):
        table.add_column(name, justify="right")
    for row in rows:
        cells = [row["category"], f"{row['positives']:,} of {row['known']:,}"]
        cells += [f"{row[key]:.3f}" if key in row else "" for key in ("error_before", "error_after")]
        threshold = row["threshold"]
        cells += [] if threshold is None else [f"{threshold['threshold']:.3f}"]
        cells += [] if threshold is None else [_interval(threshold[key]) for key in ("precision", "recall")]
        table.add_row(*map(Text, cells))
    return table


def _interval(value: dict[str, float]) -> str:
    return f"{value['estimate']:.0%} ({value['low']:.0%}-{value['high']:.0%})"
