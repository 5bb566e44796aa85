"""Command-line options of `triaxial evaluate` for few-shot tasks."""

import argparse
from pathlib import Path

from gpt.errors import ConfigError, import_extra
from gpt.evaluation.few_shot.gpt3_problems import words_of_file, words_of_python
from gpt.evaluation.few_shot.tasks import FewShotOptions, OpenTasks, open_tasks
from launch.evaluation.truthful_qa import TRUTHFUL_QA, make_truthful_qa
from launch.processes.environment import stay_offline

_PAPER = "paper"
_SHOTS = ["0", "1", "5"]  # the default


def add_few_shot_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all options for few-shot tasks."""
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="NAME",
        help="few-shot tasks: gpt3 (all fifteen, the default), gpt3_arithmetic, gpt3_words, one of them "
        "by name, a task of lm-evaluation-harness whose data is on this machine, or none",
    )
    parser.add_argument(
        "--num-fewshot",
        nargs="+",
        metavar="K",
        help="examples before each question (default: 0 1 5); paper: 0, 1, and 50 (arithmetic) or 100 (words) if that "
        "many fit",
    )
    parser.add_argument(
        "--same-examples",
        action="store_true",
        help="show the same examples before all questions of a task, so that they are read once (default: each "
        "question draws its own)",
    )
    parser.add_argument(
        "--answers",
        choices=("written", "likelihood"),
        default="written",
        help="gpt3 tasks: compare the answer that the model writes (the default), or score the right answer",
    )
    _add_problem_arguments(parser)


def _add_problem_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the questions of a task and how choices are compared."""
    parser.add_argument("--limit", type=int, metavar="N", help="questions per task (default: all)")
    parser.add_argument(
        "--gpt3-data",
        type=Path,
        metavar="DIR",
        help="folder `data` of openai/gpt-3: use its problems instead of generated ones",
    )
    parser.add_argument(
        "--words", type=Path, metavar="FILE", help="text whose words are scrambled (default: Python's help topics)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of questions and examples (default: 0)")
    parser.add_argument(
        "--normalise",
        nargs="+",
        default=[],
        metavar="RULE",
        help="also compare choices by the rules of the GPT-3 paper: tokens (per token), answer (relative to the choice "
        "after 'Answer:' alone)",
    )
    parser.add_argument(
        "--include-path",
        "--include_path",
        type=Path,
        metavar="DIR",
        help="folder with your own YAML tasks for lm-evaluation-harness; their Python functions are run",
    )
    parser.add_argument(
        "--truthful-qa",
        type=Path,
        metavar="FILE",
        help="JSON lines in TruthfulQA's form: also ask truthful_qa_mc1 and truthful_qa_mc2",
    )
    parser.add_argument(
        "--log-samples",
        type=Path,
        metavar="DIR",
        help="write each question with the model's answer and its metrics to DIR/TASK_K-shot.jsonl",
    )
    parser.add_argument(
        "--clean-subset",
        type=Path,
        metavar="FILE",
        help="examples.jsonl of `triaxial prepare overlap`: also score the items that are not in the corpus",
    )


def few_shot_tasks(args: argparse.Namespace) -> OpenTasks | None:
    """Open the tasks that the options name; None for `--tasks none`. Fails before any model is loaded."""
    if args.tasks == ["none"]:
        if args.num_fewshot is not None:
            given = " ".join(args.num_fewshot)
            raise ConfigError(f"--num-fewshot {given} is invalid without few-shot tasks: name some with --tasks")
        return None if args.truthful_qa is None else _open_tasks(args, tasks=(), shots=["0"])
    if "none" in args.tasks:
        raise ConfigError(f"--tasks {' '.join(args.tasks)} is invalid: 'none' excludes other tasks.")
    return _open_tasks(args, tasks=tuple(args.tasks), shots=args.num_fewshot or _SHOTS)


def _open_tasks(args: argparse.Namespace, *, tasks: tuple[str, ...], shots: list[str]) -> OpenTasks:
    stay_offline()
    import_extra("lm_eval", extra="eval")
    if args.gpt3_data is not None and args.words is not None:
        raise ConfigError(
            "--words is only valid for generated problems, and --gpt3-data uses published ones. Give one of the two."
        )
    return open_tasks(
        FewShotOptions(
            tasks=tasks,
            shots=_numbers(shots),
            paper_shots=_PAPER in shots,
            limit=args.limit,
            words=words_of_python() if args.words is None else words_of_file(args.words),
            seed=args.seed,
            batch_tokens=args.batch_tokens,
            same_examples=args.same_examples,
            answers=args.answers,
            gpt3_data=args.gpt3_data,
            normalise=tuple(dict.fromkeys(args.normalise)),
            clean_subset=args.clean_subset,
            include_path=args.include_path,
            own=() if args.truthful_qa is None else ((make_truthful_qa(args.truthful_qa), TRUTHFUL_QA),),
        )
    )


def _numbers(given: list[str]) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(text) for text in given if text != _PAPER))
    except ValueError:
        raise ConfigError(f"--num-fewshot {' '.join(given)} is invalid: use whole numbers, or {_PAPER}.") from None
