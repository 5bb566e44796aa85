"""`triaxial tax`: few-shot tasks before and after alignment, and the differences with intervals by item."""

import argparse
from argparse import Namespace
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from gpt.errors import ConfigError
from gpt.evaluation.few_shot.tasks import OpenTasks
from gpt.evaluation.intervals import interval_text
from gpt.inference.cpu_model import packed
from gpt.inference.model import LocalModel
from launch.commands.evaluate import evaluate_few_shot
from launch.evaluation.few_shot_arguments import few_shot_tasks
from launch.evaluation.sample_logs import check_sample_folder
from launch.evaluation.task_differences import (
    TaskDifference,
    difference_record,
    holds_samples,
    read_items,
    task_differences,
)
from launch.processes.terminal import table_console
from launch.reports.written import json_destination
from launch.runs.open_model import OpenedModel
from launch.runs.saved_run import DTYPES, device_of, load_run


def run(args: argparse.Namespace) -> int:
    paths = {"before": args.before, "after": args.after}
    runs = {name: path for name, path in paths.items() if not holds_samples(path)}
    tasks = open_tasks(args, needed=bool(runs))
    with json_destination(args.json) as emit:
        for name, path in runs.items():
            assert tasks is not None
            paths[name] = args.log_samples / name
            evaluate(path, tasks, paths[name], args)
        found = task_differences(read_items(paths["before"]), read_items(paths["after"]))
        table_console().print(difference_table(found))
        emit([difference_record(one) for one in found])
    return 0


def open_tasks(args: Namespace, *, needed: bool) -> OpenTasks | None:
    """The tasks to ask; None if both evaluations are there already. ConfigError before any model is loaded."""
    if not needed:
        return None
    args.tasks = args.tasks or (["gpt3"] if args.truthful_qa is None else ["none"])  # as `evaluate` chooses
    if args.log_samples is None:
        raise ConfigError("--log-samples is missing: name the folder for the questions with the answers of both models")
    tasks = few_shot_tasks(args)
    if tasks is None:
        raise ConfigError("--tasks none is invalid: there is nothing to compare. Name tasks, or leave it out")
    for name in ("before", "after"):
        check_sample_folder(args.log_samples / name)
    return tasks


def evaluate(run: Path, tasks: OpenTasks, folder: Path, args: Namespace) -> None:
    """Ask one model all tasks, and write each question with its answer to a folder. Frees the model."""
    loaded = load_run(run, device=device_of(args.device), dtype=DTYPES[args.dtype])
    tasks.check_answers(n_ctx=loaded.saved.model_config.n_ctx)
    kept, _ = tasks.that_fit(loaded.saved.tokenizer, n_ctx=loaded.saved.model_config.n_ctx)
    model = packed(LocalModel(loaded.model), rows=args.batch_tokens)
    evaluate_few_shot(OpenedModel(model, loaded.saved, is_main=True), kept, log_samples=folder)


def difference_table(found: list[TaskDifference]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("task", "metric"):
        table.add_column(name)
    for name in ("items", "before", "after", "difference, 95% by item"):
        table.add_column(name, justify="right")
    for one in found:
        numbers = (f"{one.items:,}", f"{one.before:.4g}", f"{one.after:.4g}")
        cells = (one.task, one.metric, *numbers, interval_text(one.difference, percent=False))
        table.add_row(*(Text(text) for text in cells))
    return table
