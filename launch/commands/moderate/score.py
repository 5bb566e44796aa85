"""`triaxial moderate score`: the probability of each category for every text of a corpus."""

import argparse
from pathlib import Path

from gpt.errors import ConfigError, one_line
from gpt.telemetry.screen import counted
from launch.config.run_arguments import (
    add_classifier_arguments,
    add_run_arguments,
    check_run_arguments,
    is_first_process,
    starts_ranks,
)
from launch.processes.terminal import SafeConsole, work_progress
from launch.reports.written import add_json_option, check_destination, json_destination


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="JSON lines, Parquet, WARC, WET, text or HTML files, folders and patterns as `triaxial prepare` takes "
        "them, or the prefix of token files of the run's tokenizer",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="the score file: .jsonl, .jsonl.gz or .parquet. If the run was interrupted, the same command continues",
    )
    parser.add_argument("--text-field", default="text", help="field or column with the text (default: text)")
    parser.add_argument("--id-field", default="id", help="field or column with the id (default: id)")
    parser.add_argument(
        "--group",
        action="append",
        default=[],
        metavar="FIELD",
        help="a field or column that becomes a group; repeat it",
    )
    parser.add_argument("--no-text", action="store_true", help="leave the texts out of the score file")
    add_json_option(parser, "the summary")
    add_classifier_arguments(parser)


def run(args: argparse.Namespace) -> int:
    check_destination("--output", args.output)
    check_destination("--json", args.json)  # on every rank, so that none waits for the main rank
    if args.output.is_dir():
        raise ConfigError(f"--output {args.output} is invalid: it is a folder. Name a file in it")
    check_run_arguments(args)
    with args.imports():
        from launch.moderation.open_run import opened_classifier
        from launch.moderation.score import ScoreRequest, score_inputs
        from launch.moderation.score_files import stem_of
        from launch.moderation.score_inputs import find_score_inputs
        from launch.runs.open_model import start_ranks

    stem_of(args.output)
    inputs = find_score_inputs(args.inputs, text_field=args.text_field, id_field=args.id_field, group_fields=args.group)
    if starts_ranks(args):
        return start_ranks(args)
    request = ScoreRequest(inputs, args.output, with_text=not args.no_text)
    with json_destination(args.json if is_first_process() else None) as emit, opened_classifier(args) as classifier:
        console = SafeConsole(quiet=not classifier.run.is_main)
        for note in classifier.run.notes:
            console.print(one_line(note), markup=False)
        with work_progress(shows=classifier.run.is_main) as progress:
            progress.start("texts")
            facts = score_inputs(classifier, request, advance=progress.advance)
        set_aside = sum(facts["set_aside"].values())
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in facts["set_aside"].items())
        long = f"; {facts['texts_in_windows']:,} longer than {facts['window']} tokens, in windows: largest scores"
        console.print(
            f"{args.output}: {counted(facts['texts'], 'text')} scored by {facts['model']}"
            + (long if facts["texts_in_windows"] else "")
            + (f"; {counted(set_aside, 'record')} set aside ({reasons})" if set_aside else ""),
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        emit({key: value for key, value in facts.items() if key != "taxonomy_content"})  # its examples may offend
    return 0
