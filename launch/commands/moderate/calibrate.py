"""`triaxial moderate calibrate`: fit calibration and thresholds on labelled texts, and save them into a run."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from gpt.errors import ConfigError
from gpt.files.atomic import replace_file
from gpt.moderation.measures.calibration import (
    KINDS,
    calibrator_json,
    expected_calibration_error,
    fit,
)
from gpt.moderation.measures.ranking import Floats
from gpt.moderation.measures.thresholds import Target, Threshold, choose_threshold
from gpt.moderation.taxonomy import Taxonomy
from gpt.telemetry.screen import counted
from launch.moderation.decisions import CALIBRATION, FOLDER, THRESHOLDS, calibrated_scores, write_fitted_on
from launch.moderation.loop.joined import LabelledScores, joined, labelled_texts, summary_of, taxonomy_of
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
    parser.add_argument(
        "--taxonomy", type=Path, metavar="FILE", help="a TOML file, or a shipped name (default: that of the scores)"
    )
    parser.add_argument("--kind", choices=KINDS, default="temperature", help="the calibration (default: temperature)")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--precision", type=float, metavar="P", help="thresholds with most recall at this precision")
    target.add_argument("--recall", type=float, metavar="R", help="thresholds with most precision at this recall")
    parser.add_argument(
        "--sure", action="store_true", help="the lower bound of the exact 95%% interval must reach it, not the estimate"
    )
    add_json_option(parser, "calibration, thresholds and their intervals")


@dataclass
class _Fit:
    """What goes into the run, by category, and the rows of the table."""

    calibration: dict[str, Any] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)


def run(args: argparse.Namespace) -> int:
    target, wanted = _target(args)
    if not args.run.is_dir():
        raise ConfigError(f"RUN {args.run} is no directory. Name the run directory of a classifier.")
    _check_raw(args.scores)
    taxonomy = taxonomy_of(args.taxonomy, args.scores)
    texts = joined(labelled_texts(args.labels, taxonomy), args.scores, taxonomy)
    has_parents = all(summary_of(path).get("parents", True) for path in args.scores)
    with json_destination(args.json) as emit:
        found = _fit(texts, taxonomy, args, target, wanted, parents=taxonomy.parents if has_parents else ())
        _write(args.run, found, [one.id for one in texts.texts], with_thresholds=target is not None)
        table_console().print(_table(found.rows))
        for row in found.rows:
            if row["note"]:
                print(f"note: {row['category']}: {row['note']}")
        print(f"{counted(len(texts.texts), 'labelled text')} with scores; wrote {args.run / FOLDER}")
        print("note: measure with other texts: on these, calibration and thresholds look better than they are")
        values = {"calibration": found.calibration, "categories": found.rows}
        emit({"texts": len(texts.texts), "kind": args.kind, **values})
    return 0


def _fit(
    texts: LabelledScores,
    taxonomy: Taxonomy,
    args: argparse.Namespace,
    target: Target | None,
    wanted: float,
    *,
    parents: Sequence[int],
) -> _Fit:
    """Fit each category that has enough labels, and choose thresholds of the scores that the run will then give."""
    fitted = {
        category: fit(args.kind, texts.labels[:, i], texts.scores[:, i])
        for i, category in enumerate(taxonomy.ids)
        if _n_fewer(texts.labels[:, i]) >= MIN_POSITIVES
    }
    found = _Fit({category: calibrator_json(one) for category, one in fitted.items()})
    after = calibrated_scores(texts.scores, taxonomy.ids, fitted, parents)
    for i, category in enumerate(taxonomy.ids):
        labels, is_fitted = texts.labels[:, i], category in fitted
        threshold = None
        if target is not None and is_fitted:
            threshold = choose_threshold(labels, after[:, i], target, wanted, sure=args.sure)
        row = _row(labels, texts.scores[:, i], after[:, i], threshold, is_fitted=is_fitted)
        if threshold is not None:
            found.thresholds[category] = threshold.threshold
        elif target is not None and is_fitted:
            row["note"] = f"no threshold reaches {target} {wanted:g}; none is set"
        found.rows.append({"category": category, **row})
    return found


def _write(run: Path, found: _Fit, ids: Sequence[str], *, with_thresholds: bool) -> None:
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    replace_file(folder / CALIBRATION, json.dumps(found.calibration, indent=2) + "\n")
    write_fitted_on(run, ids)
    if with_thresholds:
        replace_file(folder / THRESHOLDS, json.dumps(found.thresholds, indent=2) + "\n")
    elif (folder / THRESHOLDS).exists():
        print(
            "note: thresholds.json was chosen for the scores before this calibration, and stays. Choose again with "
            "--precision or --recall, or remove it"
        )


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


def _n_fewer(labels: Floats) -> int:
    """The number of labels of the rarer class."""
    return min(int((labels == 1).sum()), int((labels == 0).sum()))


def _row(
    labels: Floats, before: Floats, after: Floats, threshold: Threshold | None, *, is_fitted: bool
) -> dict[str, Any]:
    """What was done with one category, or why nothing was."""
    positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
    row: dict[str, Any] = {"positives": positives, "known": positives + negatives, "note": "", "threshold": None}
    if not is_fitted:
        row["note"] = f"{positives} positives and {negatives} negatives are too few; its scores stay as they are"
        return row
    row["error_before"] = expected_calibration_error(labels, before)
    row["error_after"] = expected_calibration_error(labels, after)
    row["threshold"] = None if threshold is None else asdict(threshold)
    return row


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
