"""`triaxial parity`: train a recipe's first steps on many layouts and compare each with one process."""

import argparse
import itertools
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from gpt.errors import ConfigError, file_error
from gpt.files.atomic import replace_file
from gpt.telemetry.console import TimeLeft
from gpt.telemetry.screen import human_duration
from launch.config.run_config import RunConfig, read_run_config
from launch.parity.layouts import device_type, named_engines, other_splits, wanted_layouts, workload_of
from launch.parity.page import parity_page
from launch.parity.ranks import LayoutResult, LayoutTask, measure_all
from launch.parity.report import ParityReport, Tolerances, compare, compare_resume, json_text, print_report, verdict
from launch.processes.local_ranks import RankFailed, signals_unwind
from launch.training.build import check_data, check_tokenizer, open_data
from parallel.layout.config import EngineName, ParallelConfig
from parallel.planner.search import Choice, fit_micro_batch, layout_text

# (loss at every step, gradient norm and each gradient at step 1): bounds on rounding differences, measured in
# docs/results/training/layouts_agree.md.
DEFAULT_TOLERANCES = {"fp32": (1e-4, 1e-4, 1e-4), "bf16": (1e-3, 5e-3, 1e-1)}
RESULTS = ("parity.json", "parity.html")


def run(args: argparse.Namespace) -> int:
    with signals_unwind():
        return run_all(args)


def run_all(args: argparse.Namespace) -> int:
    config = read_run_config(args.recipe, args.overrides)
    tolerances = tolerances_of(args)
    engines = named_engines(args.engines)
    check_tokenizer(config)
    check_data(config, *open_data(config))
    for engine in engines:
        replace(config, parallel=ParallelConfig(engine=engine))  # refuses switches of the recipe that the engine lacks
    choices, skipped = wanted_layouts(config, args, engines)
    one = fit_micro_batch(ParallelConfig(precision=args.precision), workload_of(config))
    yardsticks = other_splits(one, config) if args.precision == "bf16" else []
    check_devices(config, max(choice.world_size for choice in choices))
    folder = clear_folder(args.output, config)
    every = [one, *yardsticks, *choices]
    savers = savers_of(every, engines)
    pairs = list(itertools.permutations(savers.values(), 2))
    tasks = [task(config, choice, saves=f"{i}" if i in savers.values() else "") for i, choice in enumerate(every)]
    tasks += [task(config, every[loader], loads=f"{saver}") for saver, loader in pairs]
    results, stopped_by = measure(tasks, steps=args.steps)
    # after a failure there are fewer results than layouts
    rows = [compare(choice, result, results[0]) for choice, result in zip(every, results, strict=False)]
    loaded = zip(pairs, results[len(every) :], strict=False)
    resumes = [compare_resume(results[saver], result) for (saver, _), result in loaded]
    n = 1 + len(yardsticks)
    report = ParityReport(
        args.precision,
        args.steps,
        tolerances,
        rows[:1],
        rows[1:n],
        rows[n:],
        skipped,
        resumes=resumes,
        stopped_by=stopped_by,
    )
    return conclude(report, folder, recipe=None if args.no_page else args.recipe)


def savers_of(every: list[Choice], engines: list[EngineName]) -> dict[EngineName, int]:
    """For each of several engines, the index of the layout whose checkpoint the others load: its largest."""
    if len(engines) < 2:
        return {}
    found = {}
    for engine in engines:
        indices = [i for i, choice in enumerate(every) if choice.parallel.engine == engine]
        if indices:
            found[engine] = max(indices, key=lambda i: (every[i].world_size, -i))
    return found


def measure(tasks: list[LayoutTask], *, steps: int) -> tuple[list[LayoutResult], str | None]:
    """The results of the tasks, with a line for each; and the error that ended them early, if any."""
    results: list[LayoutResult] = []
    time_left = TimeLeft(len(tasks))
    time_left.update(0, now=time.monotonic())
    try:
        for done, result in zip(tasks, measure_all(tasks, steps=steps), strict=False):
            results.append(result)
            if done.loads:
                what = f"{len(result.later_losses)} steps from another engine's checkpoint"
            else:
                what = f"loss {result.losses[-1]:.6f} after {steps} steps"
            left_s = time_left.update(len(results), now=time.monotonic())
            left = f", about {human_duration(left_s)} left" if left_s else ""
            print(f"[{len(results)}/{len(tasks)}] {result.name}: {what}, {result.seconds:.1f} s{left}", flush=True)
    except (ConfigError, RankFailed) as error:
        if isinstance(error, ConfigError) and not results:
            raise  # a mistake in the recipe. A failure of a later layout only, such as a NaN loss, is a finding.
        print(f"triaxial: error: {error}", file=sys.stderr, flush=True)
        return results, str(error)
    return results, None


def tolerances_of(args: argparse.Namespace) -> Tolerances:
    """The given tolerances, and the precision's defaults for the others."""
    given = (args.tolerance, args.norm_tolerance, args.gradient_tolerance)
    defaults = DEFAULT_TOLERANCES[args.precision]
    return Tolerances(*(default if value is None else value for default, value in zip(defaults, given, strict=True)))


def check_devices(config: RunConfig, processes: int) -> None:
    if device_type(config) == "cpu":
        return
    if processes > torch.cuda.device_count():
        raise ConfigError(
            f"these layouts need {processes} processes with one GPU each, but there are {torch.cuda.device_count()} "
            f"GPUs. Choose smaller layouts, or --run.device cpu"
        )


def task(config: RunConfig, choice: Choice, *, saves: str = "", loads: str = "") -> LayoutTask:
    batch = replace(config.batch, micro_batch_size=choice.micro_batch_size)
    resolved = replace(config, parallel=choice.parallel, batch=batch)
    return LayoutTask(layout_text(choice.parallel), choice.world_size, resolved, saves, loads)


def clear_folder(output: Path | None, config: RunConfig) -> Path:
    """The folder for the results, with those of an earlier run deleted; ConfigError if it is not writable."""
    named, folder = ("run.directory", config.run.directory) if output is None else ("--output", output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in RESULTS:
            (folder / name).unlink(missing_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise file_error(
            error,
            f"{named} = '{folder}' is invalid: must be a folder to write {' and '.join(RESULTS)} to: {error.strerror}",
        ) from None
    return folder


def conclude(report: ParityReport, folder: Path, *, recipe: str | None) -> int:
    """Print the report, write the files, and return the exit status. `recipe`: the page's title; None: no page."""
    if report.reference:
        print_report(report)
    files = [folder / name for name in RESULTS]
    replace_file(files[0], json_text(report))
    if recipe is not None and report.reference:
        replace_file(files[1], parity_page(report, recipe=recipe))
    print(f"written to {' and '.join(str(file) for file in files if file.exists())}")
    print(verdict(report))
    for failure in report.failures:
        print(f"triaxial: parity: {failure.splitlines()[0]}")
    return 1 if report.failures else 0
