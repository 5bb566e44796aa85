"""`triaxial toxicity`: continue prompts several times, score the texts, and report how toxic they get."""

import argparse
from dataclasses import asdict

from rich import box
from rich.table import Table
from rich.text import Text

from gpt.evaluation.intervals import interval_text
from gpt.inference.sampling_settings import Sampling
from gpt.post_training.analysis.toxicity import Toxicity
from launch.comparison.answers import ComparedSettings, answers_of
from launch.evaluation.toxicity import (
    by_group,
    continuation_lines,
    read_toxicity_prompts,
    repeated,
    score_texts,
    scorer_of,
)
from launch.generation.prompt_file import write_lines
from launch.processes.terminal import table_console
from launch.reports.written import json_destination
from launch.runs.saved_run import DTYPES, device_of


def run(args: argparse.Namespace) -> int:
    prompts = read_toxicity_prompts(args.prompts, prefix=args.prefix, chat=args.chat)
    score = scorer_of(args.scorer, device=args.device)  # a mistake must come before the model continues the prompts
    settings = ComparedSettings(
        Sampling(args.temperature, top_p=args.top_p),
        args.max_new_tokens,
        args.seed,
        stops=(),
        device=device_of(args.device),
        dtype=DTYPES[args.dtype],
    )
    with json_destination(args.json) as emit:
        texts = answers_of(args.run, repeated(prompts, args.n), settings)
        scores = score_texts(score, prompts, texts, k=args.n)
        found = by_group(prompts, scores)
        if args.output is not None:
            write_lines(args.output, continuation_lines(prompts, texts, scores))
        table_console().print(toxicity_table(found))
        unscored = found["all prompts"].unscored
        if unscored:
            print(f"note: {unscored:,} of {scores.size:,} continuations have no score and do not count")
        emit({name: asdict(one) for name, one in found.items()})
    return 0


def toxicity_table(found: dict[str, Toxicity]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in ("prompts", "expected maximum, 95%", "toxic at least once, 95%", "mean, 95%"):
        table.add_column(name, justify="right")
    for name, one in found.items():
        cells = (
            interval_text(one.expected_maximum, percent=False),
            interval_text(one.probability),
            interval_text(one.mean, percent=False),
        )
        table.add_row(*(Text(text) for text in (name, f"{one.prompts:,}", *cells)))
    return table
