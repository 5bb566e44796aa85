"""`triaxial moderate report`: one or two versions of a classifier on labelled texts, as one HTML page."""

import argparse
import time
from dataclasses import asdict, replace
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from gpt.errors import ConfigError, escaped
from gpt.files.json_files import read_json_object
from gpt.moderation.measures.intervals import RESAMPLES
from gpt.moderation.taxonomy import Taxonomy
from gpt.telemetry.screen import counted
from launch.comparison.questions import model_names
from launch.moderation.decisions import CALIBRATION, n_fitted_on
from launch.moderation.loop.joined import summary_of
from launch.moderation_report.costs import LabelCosts, label_costs
from launch.moderation_report.measured import ReportFigures, as_json, measure
from launch.moderation_report.page import ReportParts, moderation_page
from launch.moderation_report.plots import interval_text
from launch.moderation_report.probes import probes_of
from launch.moderation_report.rounds import Round, read_rounds
from launch.moderation_report.versions import (
    ComparedVersions,
    compare,
    find_taxonomy,
    open_runs,
    read_thresholds,
    read_version,
    score_run,
)
from launch.processes.terminal import printable, table_console
from launch.reports.written import add_json_option, check_destination, json_destination, write_page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "scores",
        type=Path,
        nargs="+",
        metavar="SCORES",
        help="one or two versions: files of `moderate score`, or runs, which score the texts on this process",
    )
    parser.add_argument(
        "--labels", type=Path, nargs="+", required=True, metavar="FILE", help="labelled texts that trained no version"
    )
    parser.add_argument(
        "--taxonomy", type=Path, metavar="FILE", help="a TOML file, or a shipped name (default: that of the scores)"
    )
    parser.add_argument(
        "--thresholds",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="thresholds.json of each version, or one for all (default: those of a run, 0.5 for scores)",
    )
    parser.add_argument(
        "--probes", type=Path, nargs="+", default=[], metavar="FILE", help="files that `moderate probe --json` wrote"
    )
    parser.add_argument(
        "--round",
        nargs=2,
        action="append",
        default=[],
        metavar=("LABELS", "SCORES"),
        help="a point of the learning curve: a number or file of labels, and the scores of their classifier",
    )
    parser.add_argument(
        "--labelled",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="files of `moderate label`: the cost of labels",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the page to FILE")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help=f"bootstrap resamples (default: {RESAMPLES})")
    add_json_option(parser, "the figures")


def run(args: argparse.Namespace) -> int:
    check_arguments(args)
    runs = open_runs(args.scores)
    taxonomy = find_taxonomy(args.taxonomy, args.scores, runs)
    with json_destination(args.json) as emit:
        names = [without_ending(name) for name in model_names(args.scores)]
        files = args.thresholds * len(names) if len(args.thresholds) == 1 else args.thresholds or [None] * len(names)
        versions = []
        for path, name, file in zip(args.scores, names, files, strict=True):
            given = read_thresholds(file, taxonomy)
            check_kind_of_scores(path, file)
            version = (
                score_run(runs[path], args.labels, taxonomy, name=name)
                if path in runs
                else read_version(path, taxonomy, name=name, thresholds=given)
            )
            chosen = tuple(given.get(one, old) for one, old in zip(taxonomy.ids, version.thresholds, strict=True))
            versions.append(replace(version, thresholds=chosen))
        compared = compare(versions, args.labels, taxonomy)
        probes = probes_of(args.probes, [one.model for one in versions])
        rounds = rounds_of(args, taxonomy)
        costs = label_costs(args.labelled, taxonomy) if args.labelled else None
        figures = measure(compared, resamples=args.resamples)
        show(figures, n_left_out=compared.without_scores)
        for line in fitted_notes(compared):
            print(escaped(line))
        if args.html is not None:
            page = moderation_page(ReportParts(compared, figures, probes, rounds, costs), now=time.time())
            write_page("--html", args.html, page)
            print(f"wrote {args.html}")
        emit({"taxonomy": taxonomy.label, **as_json(figures), **further(rounds, costs)})
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ConfigError for mistakes that can be found without a file."""
    check_destination("--html", args.html)
    if len(args.scores) > 2:
        raise ConfigError(f"{len(args.scores)} versions: a report compares two. Give SCORES, or SCORES SCORES.")
    if len(args.thresholds) not in (0, 1, len(args.scores)):
        raise ConfigError(f"--thresholds has {len(args.thresholds)} files. Give one, or one for each version.")
    if args.resamples < 1:
        raise ConfigError(f"--resamples {args.resamples} is invalid: it must be at least 1.")


def without_ending(name: str) -> str:
    """The name of a score file without its ending, such as .jsonl.gz."""
    for ending in (".gz", ".jsonl", ".parquet"):
        name = name.removesuffix(ending)
    return name


def rounds_of(args: argparse.Namespace, taxonomy: Taxonomy) -> list[Round]:
    pairs = [(labels, Path(scores)) for labels, scores in args.round]
    return read_rounds(pairs, args.labels, taxonomy, resamples=args.resamples)


def check_kind_of_scores(scores: Path, thresholds: Path | None) -> None:
    """ConfigError: the scores are raw, by their summary, and the thresholds those of a run with a calibration."""
    if thresholds is None or scores.is_dir() or summary_of(scores).get("calibrated") is not False:
        return
    calibration = thresholds.with_name(CALIBRATION)
    if calibration.is_file() and read_json_object(calibration):
        raise ConfigError(
            f"--thresholds {thresholds} is invalid with {scores}: they were chosen of calibrated scores, and the file "
            "has raw ones. Score the texts without --raw"
        )


def fitted_notes(compared: ComparedVersions) -> list[str]:
    """Warn of texts that chose the calibration and thresholds of a version: its figures on them are too good."""
    lines = []
    for version in compared.versions:
        run = version.facts.get("run")
        n = n_fitted_on(Path(run), compared.ids) if isinstance(run, str) else 0
        if n:
            lines.append(
                f"note: {n:,} of {counted(len(compared.ids), 'text')} chose the calibration or thresholds of {run} "
                "(`moderate calibrate`), so the figures of its decisions and calibration are too good. Give other texts"
            )
    return lines


def further(rounds: list[Round], costs: LabelCosts | None) -> dict[str, object]:
    """The learning curve and the costs for the JSON, where there are any."""
    found: dict[str, object] = {}
    if rounds:
        found["rounds"] = [
            {"labels": one.labels, "auprc": {name: asdict(interval) for name, interval in one.auprc}} for one in rounds
        ]
    if costs is not None:
        found["cost"] = asdict(costs)
    return found


def show(figures: ReportFigures, *, n_left_out: int) -> None:
    """Print the measures of every category."""
    console = table_console()
    console.print(Text(f"{counted(figures.n_texts, 'labelled text')}"))
    if n_left_out:
        console.print(Text(f"note: {counted(n_left_out, 'labelled text')} left out for want of scores"))
    for version in figures.versions:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for i, head in enumerate(
            (version.name, "labels", "positive", "AUPRC, 95%", "AUROC", "F1", "calibration error")
        ):
            table.add_column(printable(head), justify="left" if i == 0 else "right", overflow="fold")
        for one in (found.measures for found in version.categories):
            values = (interval_text(one.auprc), f"{one.auroc.estimate:.3f}", f"{one.f1.estimate:.3f}")
            table.add_row(
                Text(one.category), f"{one.known:,}", f"{one.positives:,}", *values, f"{one.calibration_error:.3f}"
            )
        console.print(table)
