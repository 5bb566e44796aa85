"""`triaxial moderate select`: choose the texts to label next from scored texts."""

import argparse
import json
from collections import Counter
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from gpt.errors import ConfigError, did_you_mean
from gpt.files.atomic import open_replacement
from gpt.moderation.loop.selection import SelectionSettings, select
from gpt.moderation.score_files import score_categories
from gpt.telemetry.screen import counted
from launch.moderation.loop.selection import labelled_ids, mean_scores, pool_of, selected_records
from launch.processes.terminal import table_console
from launch.reports.written import add_json_option, check_destination, json_destination

OVERSAMPLE = 4  # with --group-by: this many candidates for each text, of which the groups' weights choose


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scores", type=Path, nargs="+", metavar="SCORES", help="files of `triaxial moderate score`")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE.jsonl", help="the texts for `moderate label`"
    )
    parser.add_argument("--n", type=int, default=2000, help="how many texts (default: 2000, a round of the paper)")
    parser.add_argument(
        "--labelled", type=Path, nargs="+", default=[], metavar="FILE", help="labelled texts, which are left out"
    )
    parser.add_argument("--categories", nargs="+", metavar="ID", help="categories to look for (default: all)")
    parser.add_argument(
        "--shares",
        nargs=3,
        type=float,
        default=(1.0, 1.0, 1.0),
        metavar=("RANDOM", "ABOVE", "UNCERTAIN"),
        help="shares of the three pipelines (default: 1 1 1)",
    )
    parser.add_argument(
        "--above",
        nargs="+",
        default=[],
        metavar="ID=P",
        help="threshold of `above` for a category (default: 0.5; if too few reach it, the next highest are used)",
    )
    parser.add_argument(
        "--top",
        type=int,
        metavar="N",
        help="draw above from the N highest scores of a category instead: for rare categories, whose scores stay low",
    )
    parser.add_argument("--group-by", metavar="NAME", help="weight texts by this group, by the root of its count")
    parser.add_argument("--seed", type=int, default=0, help="the same seed selects the same texts (default: 0)")
    add_json_option(parser, "the counts")


def run(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    check_destination("--output", args.output)
    state_file = args.output.with_name(f".{args.output.name}.state.json")
    with json_destination(args.json) as emit:
        labelled = labelled_ids(args.labelled)
        pool, n_labelled = pool_of(
            args.scores, settings, labelled=labelled, group_by=args.group_by, state_file=state_file
        )
        selected = select(pool, settings)
        records = list(selected_records(args.scores, selected))
        with open_replacement(args.output) as file:
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        state_file.unlink(missing_ok=True)
        counts = Counter(one.pipeline for one in selected)
        found = {
            "pool": pool.seen,
            "labelled": n_labelled,
            "selected": len(selected),
            "pipelines": {name: counts[name] for name in settings.pipelines},
            "groups": dict(Counter(one.group for one in selected)) if args.group_by else {},
            "mean_scores": mean_scores(records, settings.categories),
        }
        table_console().print(_table(settings, counts))
        further = f"; {counted(n_labelled, 'further text')} of the pool labelled already" if args.labelled else ""
        print(f"selected {len(selected):,} of {counted(pool.seen, 'text')}{further}")
        if any("text" not in record for record in records):
            print("note: the scores have no texts, which `triaxial moderate label` needs. Score without --no-text.")
        emit(found)
    return 0


def settings_of(args: argparse.Namespace) -> SelectionSettings:
    """Check the arguments. ConfigError: one of them breaks a rule, or names no category of the scores."""
    for name, least in (("n", 1), ("seed", 0), ("top", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name} {value} is invalid: it must be at least {least}.")
    if args.seed >= 1 << 63:
        raise ConfigError(f"--seed {args.seed} is invalid: it must be below 2^63. Use 0.")
    if min(args.shares) < 0 or sum(args.shares) == 0:
        shares = " ".join(f"{share:g}" for share in args.shares)
        raise ConfigError(f"--shares {shares} is invalid: no share may be below 0, and one must be above. Use 1 1 1.")
    known = score_categories(args.scores[0])
    categories = tuple(args.categories or known)
    for name in categories:
        check_category("--categories", name, known)
    if args.above and args.top is not None:
        raise ConfigError("--above and --top exclude each other. Give one of the two.")
    thresholds = thresholds_of("--above", args.above, categories)
    return SelectionSettings(
        n=args.n,
        categories=categories,
        seed=args.seed,
        shares=tuple(args.shares),
        thresholds=tuple(thresholds.get(name, 0.5) for name in categories),
        top=args.top,
        oversample=OVERSAMPLE if args.group_by else 1,
    )


def thresholds_of(option: str, items: list[str], categories: tuple[str, ...]) -> dict[str, float]:
    """Parse items such as `H=0.3`. ConfigError: another form, an unknown category, or no probability."""
    found = {}
    for item in items:
        name, equals, text = item.partition("=")
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not equals or not 0 <= value <= 1:
            raise ConfigError(f"{option} {item} is invalid: it must be a category and a number from 0 to 1. Use H=0.3.")
        check_category(option, name, categories)
        found[name] = value
    return found


def check_category(option: str, name: str, known: tuple[str, ...]) -> None:
    """ConfigError if a name is no category."""
    if name not in known:
        hint = did_you_mean(name, known) or f"use one of {', '.join(known)}."
        raise ConfigError(f"{option} {name} is invalid: it is no category of these files; {hint}")


def _table(settings: SelectionSettings, counts: Counter[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("pipeline")
    table.add_column("texts", justify="right")
    for name in settings.pipelines:
        table.add_row(Text(name), Text(f"{counts[name]:,}"))
    return table
