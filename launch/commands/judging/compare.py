"""`triaxial compare`: let people compare the answers of several runs, blind, and count their votes."""

import argparse
import json

from gpt.errors import ConfigError
from gpt.files.atomic import replace_file
from gpt.inference.sampling_settings import Sampling
from launch.comparison.answers import ComparedSettings, answers_of, check_answers
from launch.comparison.page import comparison_page
from launch.comparison.prompts import ComparedPrompt, read_conversations, read_texts_to_continue
from launch.comparison.questions import (
    AnsweredPrompt,
    answered_prompts,
    digest,
    make_questions,
    model_names,
    prompt_record,
)
from launch.comparison.votes import ANSWERS
from launch.processes.terminal import printable
from launch.runs.saved_run import DTYPES, device_of

PAGE = "index.html"


def run(args: argparse.Namespace) -> int:
    names = model_names(args.run)
    prompts = prompts_of(args)
    settings = ComparedSettings(
        sampling=Sampling(args.temperature, None, args.top_p, 1.0),
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
        stops=tuple(args.stop),
        device=device_of(args.device),
        dtype=DTYPES[args.dtype],
    )
    for path in args.run:
        check_answers(path, prompts, settings)  # a mistake must come before the first model answers
    answers = {}
    for name, path in zip(names, args.run, strict=True):
        print(f"{printable(name)}: {len(prompts):,} prompts", flush=True)
        answers[name] = answers_of(path, prompts, settings)
    write(args, answered_prompts([prompt.shown for prompt in prompts], answers, seed=args.seed))
    return 0


def prompts_of(args: argparse.Namespace) -> list[ComparedPrompt]:
    """Read the prompts; print how many records of a file of conversations cannot be used."""
    if not args.chat:
        return read_texts_to_continue(args.prompts)
    prompts, left_out = read_conversations(args.prompts)
    for reason, n in left_out.most_common():
        print(f"note: {n:,} records of {args.prompts} left out: {reason}")
    return prompts


def write(args: argparse.Namespace, prompts: list[AnsweredPrompt]) -> None:
    """Write the page and the key. ConfigError: there is no question to ask."""
    questions, n_equal = make_questions(prompts, seed=args.seed)
    if not questions:
        raise ConfigError(f"All {n_equal:,} pairs of answers are equal: there is nothing to compare. Use other runs.")
    args.output.mkdir(parents=True, exist_ok=True)
    key = "".join(json.dumps(prompt_record(one)) + "\n" for one in prompts)  # ASCII: a text may hold lone surrogates
    replace_file(args.output / ANSWERS, key)
    replace_file(args.output / PAGE, comparison_page(questions, comparison_id=digest(key, args.seed)))
    equal = f" ({n_equal:,} pairs of equal answers left out)" if n_equal else ""
    print(f"wrote {args.output / PAGE}: {len(questions):,} questions{equal}. Open it in a browser; no server is needed")
    print(f"then: triaxial compare {args.output} --votes votes-NAME.jsonl")
