"""`triaxial moderate label`: people label texts on a local page, by keyboard; and how far labellers agree."""

import argparse
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from gpt.errors import ConfigError, file_error
from gpt.evaluation.intervals import Interval
from gpt.moderation.agreement import CategoryAgreement, agreements
from gpt.moderation.taxonomy import Taxonomy, read_taxonomy
from gpt.telemetry.screen import counted
from launch.labelling.answers import AnswerFile, LabelAnswer, answer_of
from launch.labelling.server import LabellingServer
from launch.labelling.task import LabellingTask, check_labellers
from launch.labelling.texts import TextsToLabel, read_texts
from launch.processes.terminal import printable, table_console
from launch.reports.written import add_json_option, json_destination

ByLabeller = dict[str, dict[str, LabelAnswer]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "texts",
        type=Path,
        nargs="+",
        metavar="FILE",
        help='JSON lines with a "text": of `moderate select` or `moderate score`, labels, or of another tool',
    )
    parser.add_argument("--taxonomy", type=Path, required=True, metavar="FILE", help="a TOML file, or a shipped name")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="JSON lines of labels; answers are added to a file that exists"
    )
    parser.add_argument(
        "--labeller", nargs="+", default=[], metavar="NAME", help="who labels; each name gets an address of its own"
    )
    parser.add_argument(
        "--overlap",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="share of the texts that every labeller gets; the others are labelled once (default: 1)",
    )
    parser.add_argument("--blur", action="store_true", help="blur each text until the labeller presses Space")
    parser.add_argument("--port", type=int, default=0, help="of the page (default: a free one)")
    parser.add_argument(
        "--agreement", action="store_true", help="open no page: print how far the labellers of the files agree"
    )
    add_json_option(parser, "the agreement")


def run(args: argparse.Namespace) -> int:
    taxonomy = read_taxonomy(args.taxonomy)
    if args.agreement:
        return show_agreement(args, taxonomy)
    check_arguments(args)
    given = read_texts(args.texts)
    for reason, n in given.left_out.most_common():
        print(f"note: {counted(n, 'line')} left out: {printable(reason)}")
    file = AnswerFile(args.output)
    others = {name: frozenset(found) for name, found in answers_in(given).items()}
    task = LabellingTask(given.texts, taxonomy, file, overlap=args.overlap, others=others)
    open_file(file, args, given)
    try:
        server = LabellingServer(task, args.labeller, blur=args.blur, port=args.port)
    except OSError as error:
        raise ConfigError(f"--port {args.port}: {error.strerror}. Use another port, or leave it out.") from error
    with server:
        print(
            f"{counted(len(given.texts), 'text')}; labels go to {args.output}. On this machine only (Ctrl-C ends it):"
        )
        for name, url in server.urls.items():
            print(f"  {printable(name)}: {url}", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    with file.locked():
        report(file, args)
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ConfigError for mistakes that can be found without a text."""
    if args.output is None or not args.labeller:
        missing = "--output" if args.output is None else "--labeller"
        raise ConfigError(f"{missing} is missing. Give --labeller NAME --output FILE, or use --agreement.")
    check_labellers(args.labeller)
    if not 0 <= args.overlap <= 1:
        raise ConfigError(f"--overlap {args.overlap} is invalid: it is a share. Use a number from 0 to 1.")
    if not 0 <= args.port < 2**16:
        raise ConfigError(f"--port {args.port} is no port. Use one from 1024 to 65535, or leave it out.")
    if args.json is not None:
        raise ConfigError(f"--json {args.json} is only for --agreement. Leave it out.")
    if any(path.exists() and args.output.exists() and path.samefile(args.output) for path in args.texts):
        raise ConfigError(f"--output {args.output} is one of the files of texts. Give another file.")


def open_file(file: AnswerFile, args: argparse.Namespace, given: TextsToLabel) -> None:
    """Read what the output has already. ConfigError: it cannot be written, or is another kind of file."""
    try:
        with file.locked():
            pass
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise file_error(error, f"--output {args.output} cannot be written: {reason}") from None
    if file.damaged and not file.by_labeller:
        raise ConfigError(
            f"--output {args.output} holds {file.damaged:,} lines, and none is an answer. Give another file."
        )
    if file.damaged:
        print(f"note: {counted(file.damaged, 'damaged line')} of {args.output} left out")
    known = {text.id for text in given.texts}
    for name in args.labeller:
        n = len(file.by_labeller.get(name, {}).keys() & known)
        if n:
            print(f"{printable(name)} has answered {n:,} of {len(known):,} texts, and continues there")


def answers_in(given: TextsToLabel) -> ByLabeller:
    """The answers that the files of texts hold already: the last of each labeller on a text."""
    found: ByLabeller = {}
    for record in given.labelled:
        answer, is_undone = answer_of(record)
        if answer is not None:
            mine = found.setdefault(answer.labeller, {})
            mine.pop(answer.text_id, None)
            if not (is_undone or answer.is_skipped):
                mine[answer.text_id] = answer
    return {name: mine for name, mine in found.items() if mine}


def report(file: AnswerFile, args: argparse.Namespace) -> None:
    """Print the number of answers of each labeller."""
    for name in args.labeller:
        mine = file.by_labeller.get(name, {})
        skipped = sum(answer.is_skipped for answer in mine.values())
        print(f"{printable(name)}: {len(mine) - skipped:,} labelled, {skipped:,} skipped, in {args.output}")


def show_agreement(args: argparse.Namespace, taxonomy: Taxonomy) -> int:
    """Print Cohen's kappa of each two labellers by category. ConfigError: no two labellers share a text."""
    if args.output is not None or args.labeller:
        raise ConfigError("--agreement opens no page: leave out --output and --labeller.")
    with json_destination(args.json) as emit:
        found = agreements(labels_of(answers_in(read_texts(args.texts))), taxonomy.ids)
        if not found:
            raise ConfigError(
                f"{args.texts[0]}: no text has labels of two labellers. Label it again by --labeller NAME."
            )
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for i, head in enumerate(
            ("labellers", "category", "texts", "positive by both", "by one", "agree", "kappa, 95%")
        ):
            table.add_column(head, justify="left" if i < 2 else "right", overflow="fold")
        for one in found:
            names = f"{printable(one.first)}, {printable(one.second)}"
            counts = (f"{n:,}" for n in (one.n, one.both, one.only_first + one.only_second))
            agree = "no data" if not one.n else f"{one.observed:.1%}"
            table.add_row(Text(names), Text(one.category), *counts, agree, kappa_text(one.kappa))
        table_console().print(table)
        emit([as_record(one) for one in found])
    return 0


def labels_of(answers: ByLabeller) -> Mapping[str, Mapping[str, Mapping[str, int | None]]]:
    return {name: {id_: answer.labels for id_, answer in mine.items()} for name, mine in answers.items()}


def as_record(one: CategoryAgreement) -> dict[str, object]:
    """A line of the JSON: counts, share of equal labels, kappa with its bounds."""
    return {**asdict(one), "n": one.n, "observed": one.observed}


def kappa_text(kappa: Interval) -> str:
    if kappa.estimate != kappa.estimate:
        return "one label only"
    return f"{kappa.estimate:.2f} ({kappa.low:.2f} to {kappa.high:.2f})"
