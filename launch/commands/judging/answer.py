"""`triaxial answer`: answer the questions of MT-bench, turn by turn, in a file for a judge."""

import argparse
import sys

from gpt.errors import one_line
from gpt.inference.cpu_model import packed
from gpt.inference.sampling_settings import Sampling
from launch.config.run_arguments import DEFAULT_JUDGED_TOKENS, is_first_process, starts_ranks
from launch.evaluation.judge_questions import JudgeQuestion, answer_line, answer_questions, read_questions
from launch.generation.chat import ChatSettings
from launch.generation.prompt_file import write_lines
from launch.runs.chat_format import chat_encoder
from launch.runs.open_model import opened_model, start_ranks
from parallel.agreement import broadcast_object


def run(args: argparse.Namespace) -> int:
    if starts_ranks(args):
        return start_ranks(args)
    questions: list[JudgeQuestion] = read_questions(args.questions) if is_first_process() else []
    with opened_model(args) as opened:
        questions = broadcast_object(questions, None)
        for note in opened.saved.notes if opened.is_main else ():
            print(one_line(note), file=sys.stderr)
        settings = ChatSettings(
            Sampling(args.temperature or 0.0),
            default_new_tokens=args.max_new_tokens or DEFAULT_JUDGED_TOKENS,
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
