"""`triaxial moderate probe`: show where a classifier fails, on suites, templates and labelled texts."""

import argparse
import json
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from gpt.errors import ConfigError
from gpt.files.atomic import replace_file
from gpt.moderation.measures.intervals import RESAMPLES
from gpt.moderation.probes.functional import totals
from gpt.moderation.probes.reduction import LIMIT
from launch.commands.moderate.select import check_category
from launch.moderation.loop.joined import labelled_texts
from launch.moderation.loop.probing import (
    as_json,
    probe_counterfactuals,
    probe_perturbations,
    probe_reduction,
    probe_slices,
    probe_suite,
)
from launch.moderation.loop.scorer import NamedScorer, scorer_of
from launch.processes.terminal import table_console
from launch.reports.written import add_json_option, json_destination


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "scorer", metavar="SCORER", help="a classifier run, or a function module:name of texts that gives n x c numbers"
    )
    parser.add_argument("--taxonomy", type=Path, metavar="FILE", help="the categories of the function's numbers")
    parser.add_argument("--categories", nargs="+", metavar="ID", help="categories to probe (default: all)")
    parser.add_argument(
        "--suite",
        action="append",
        default=[],
        metavar="FILE=ID",
        help="a functional suite of a category, such as HateCheck's or XSTest's CSV file",
    )
    parser.add_argument("--by-target", action="store_true", help="count a suite's functions by target too")
    parser.add_argument("--templates", type=Path, metavar="FILE", help="templates of counterfactuals, as Madlibs' CSV")
    parser.add_argument("--words", type=Path, metavar="FILE", help="the words of the templates")
    parser.add_argument(
        "--labels",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="labelled texts: to perturb, to reduce, and to measure by slices",
    )
    parser.add_argument("--slice-by", nargs="+", default=[], metavar="NAME", help="groups of the labelled texts")
    parser.add_argument("--share", type=float, default=0.5, help="share of the words to perturb (default: 0.5)")
    parser.add_argument(
        "--limit", type=float, default=LIMIT, help=f"remove words while the score is at least this (default: {LIMIT})"
    )
    parser.add_argument(
        "--reduce", type=int, default=50, metavar="N", help="texts to reduce for each category (default: 50)"
    )
    parser.add_argument("--reduced", type=Path, metavar="FILE.jsonl", help="write the words that are left; no screen")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help=f"bootstrap resamples (default: {RESAMPLES})")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--device", default="auto", help="of a run: auto, cpu or cuda (default: auto)")
    add_json_option(parser, "all results (for `triaxial moderate report`)")


def run(args: argparse.Namespace) -> int:
    _check(args)
    scorer = scorer_of(args.scorer, args.taxonomy, device=args.device)
    known = scorer.taxonomy.ids
    categories = tuple(args.categories or known)
    for name in categories:
        check_category("--categories", name, known)
    suites = [_suite(item, known) for item in args.suite]
    result: dict[str, Any] = {"model": scorer.version, "taxonomy": scorer.taxonomy.label}
    with json_destination(args.json) as emit:
        if suites:
            result["functional"] = [
                _functional(scorer, path, category, by_target=args.by_target) for path, category in suites
            ]
        if args.templates is not None:
            found = probe_counterfactuals(scorer, args.templates, args.words, categories, seed=args.seed)
            result["counterfactuals"] = as_json(found)
            table_console().print(_gap_table(result["counterfactuals"]))
        if args.labels is not None:
            result |= _on_labels(args, scorer, categories)
        emit(result)
    return 0


def _check(args: argparse.Namespace) -> None:
    if (args.templates is None) != (args.words is None):
        raise ConfigError("--templates and --words belong together. Give both.")
    if not args.suite and args.templates is None and args.labels is None:
        raise ConfigError("there is nothing to probe. Give --suite, --templates and --words, or --labels.")
    for name in ("share", "limit"):
        if not 0 < getattr(args, name) <= 1:
            raise ConfigError(f"--{name} {getattr(args, name)} is invalid: it must be above 0 and at most 1. Use 0.5.")
    if args.labels is None:
        for name, value in (("slice-by", args.slice_by), ("reduced", args.reduced)):
            if value:
                raise ConfigError(f"--{name} is only valid with --labels.")
    for name, least in (("reduce", 0), ("resamples", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise ConfigError(f"--{name} {getattr(args, name)} is invalid: it must be at least {least}.")


def _suite(item: str, known: tuple[str, ...]) -> tuple[Path, str]:
    path, equals, category = item.rpartition("=")
    if not equals or not path:
        raise ConfigError(f"--suite {item} is invalid: it must be FILE=CATEGORY. Use hatecheck.csv=H.")
    check_category("--suite", category, known)
    return Path(path), category


def _functional(scorer: NamedScorer, path: Path, category: str, *, by_target: bool) -> dict[str, Any]:
    found = probe_suite(scorer, path, category, by_target=by_target)
    whole = [one for one in found if not one.target]
    table = Table(title=Text(f"{path.name} on {category}"), box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("function")
    for name in ("label", "cases", "right, 95%", "mean score"):
        table.add_column(name, justify="right")
    for one in whole:
        label = {True: "positive", False: "negative", None: "mixed"}[one.positive]
        shown = f"{one.accuracy.estimate:.0%} ({one.accuracy.low:.0%}-{one.accuracy.high:.0%})"
        table.add_row(*map(Text, (one.function, label, f"{one.cases:,}", shown, f"{one.mean_score:.2f}")))
    console, sums = table_console(), totals(whole)
    console.print(table)
    print("right: " + ", ".join(f"{name} {one.estimate:.1%}" for name, one in sums.items()))
    return {
        "suite": path.name,
        "category": category,
        "results": as_json(found),
        "totals": {name: as_json([one])[0] for name, one in sums.items()},
    }


def _on_labels(args: argparse.Namespace, scorer: NamedScorer, categories: tuple[str, ...]) -> dict[str, Any]:
    texts = labelled_texts(args.labels, scorer.taxonomy)
    result: dict[str, Any] = {}
    effects = probe_perturbations(scorer, texts, categories, share=args.share, seed=args.seed)
    result["perturbations"] = as_json(effects)
    table_console().print(_perturbation_table(result["perturbations"]))
    result["slices"] = as_json(probe_slices(scorer, texts, args.slice_by, resamples=args.resamples))
    result["reduction"], lines = {}, []
    for category in categories if args.reduce else ():
        summary, reduced = probe_reduction(scorer, texts, category, limit=args.limit, most=args.reduce)
        result["reduction"][category] = summary
        lines += [{"id": text.id, "category": category, "left": one.text} for text, one in reduced]
        if reduced:
            before, after = summary["median_characters_before"], summary["median_characters_after"]
            print(
                f"{category}: reduced {len(reduced):,} texts from a median of {before:g} to {after:g} characters "
                f"with p >= {args.limit:g}"
            )
    if args.reduced is not None:
        replace_file(args.reduced, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        print(f"wrote {args.reduced}: the words that are left, which are of the texts")
    return result


def _gap_table(found: list[dict[str, Any]]) -> Table:
    table = Table(title=Text("counterfactuals"), box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("category")
    for name in ("sentences", "mean range", "worst range", "flagged negatives", "AUROC"):
        table.add_column(name, justify="right")
    for one in found:
        numbers = [f"{one[key]:.3f}" for key in ("mean_range", "worst_range", "false_positive_share", "auroc")]
        table.add_row(*map(Text, (one["category"], f"{one['sentences']:,}", *numbers)))
    return table


def _perturbation_table(found: list[dict[str, Any]]) -> Table:
    table = Table(title=Text("perturbations"), box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("category", "perturbation"):
        table.add_column(name)
    for name in ("flagged, of positives", "of these, rewritten", "mean change of p"):
        table.add_column(name, justify="right")
    for one in sorted(found, key=lambda row: str(row["category"])):
        cells = (one["category"], one["name"], f"{one['flagged_before']:,} of {one['texts']:,}")
        table.add_row(*map(Text, (*cells, f"{one['still_flagged']:,}", f"{one['mean_change']:+.3f}")))
    return table
