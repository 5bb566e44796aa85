"""`triaxial answer`: answer the questions of MT-bench, turn by turn, in a file for a judge."""

import argparse
import sys
from pathlib import Path

from gpt.errors import ConfigError, one_line
from gpt.inference.cpu_model import packed
from gpt.inference.sampling import Sampling
from launch.evaluation.judge_questions import JudgeQuestion, answer_line, answer_questions, read_questions
from launch.generation.chat import ChatSettings
from launch.generation.prompt_file import check_output, write_lines
from launch.runs.chat_format import chat_encoder
from launch.runs.open_model import add_layout_arguments, is_first_process, opened_model, start_ranks, starts_ranks
from launch.runs.saved_run import add_device_arguments, add_run_arguments
from parallel.agreement import broadcast_object

DEFAULT_NEW_TOKENS = 1024  # FastChat's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument(
        "--questions",
        type=Path,
        required=True,
        metavar="FILE",
        help='JSON lines with "question_id", "turns" and "category", such as question.jsonl of MT-bench',
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="the file of answers, in FastChat's form"
    )
    parser.add_argument("--model-id", metavar="NAME", help="the model's name in it (default: that of the run)")
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help=f"the longest answer, or fewer if the model's context ends before (default: {DEFAULT_NEW_TOKENS})",
    )
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="one temperature for all (default: FastChat's by category)"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same answers (default: 0)")
    add_device_arguments(parser)
    add_layout_arguments(parser)


def run(args: argparse.Namespace) -> int:
    check_arguments(args)
    if starts_ranks(args):
        return start_ranks(args)
    questions: list[JudgeQuestion] = read_questions(args.questions) if is_first_process() else []
    with opened_model(args) as opened:
        questions = broadcast_object(questions, None)
        for note in opened.saved.notes if opened.is_main else ():
            print(one_line(note), file=sys.stderr)
        settings = ChatSettings(
            Sampling(args.temperature or 0.0),
            default_new_tokens=args.max_new_tokens or DEFAULT_NEW_TOKENS,
            shows=opened.is_main,
        )
        model = packed(opened.model, rows=len(questions))
        with chat_encoder(opened.saved) as encoder:
            found = answer_questions(
                model, opened.saved, encoder, questions, settings, temperature=args.temperature, seed=args.seed
            )
        if opened.is_main:
            name = args.model_id or opened.saved.run_directory.resolve().name
            pairs = zip(questions, found.answers, strict=True)
            write_lines(args.output, [answer_line(question, turns, model_id=name) for question, turns in pairs])
            for reason, n in found.unanswered.items():
                print(f"note: {n:,} turns have no answer: {reason}")
            print(f"wrote {args.output}: {len(questions):,} questions")
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ConfigError for mistakes that can be found without a model."""
    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        raise ConfigError(f"--max-new-tokens {args.max_new_tokens} is invalid: it must be at least 1.")
    if args.seed < 0:
        raise ConfigError(f"--seed {args.seed} is invalid: it must be at least 0.")
    if args.temperature is not None:
        Sampling(args.temperature)  # raises
    check_output(args.output)
