"""`triaxial parity`: trains a recipe's first steps on many layouts and shows that each is the one-process run."""

import argparse
import math
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from gpt.errors import ConfigError, import_extra
from launch.config.recipe import apply_overrides, build
from launch.config.run_config import RunConfig, read_run_config
from launch.parity.ranks import Result, Task, measure_all
from launch.parity.report import Report, Tolerances, compare, draw, print_report, write_json
from launch.processes.environment import ClusterEnvironment
from launch.processes.local_ranks import RankFailed, signals_unwind
from launch.training.build import check_tokenizer, open_data
from parallel.layout.config import ParallelConfig
from parallel.planner.search import (
    Choice,
    Skipped,
    Workload,
    choose_layouts,
    fit_micro_batch,
    is_one_process,
    layout_text,
)

# (loss at every step, gradient norm at step 1): what rounding may do. docs/parity.md has the measurements.
DEFAULT_TOLERANCES = {"fp32": (1e-4, 1e-4), "bf16": (1e-3, 5e-3)}

RESULTS = ("parity.json", "parity.png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_overrides=True)
    parser.add_argument("recipe", help="a TOML recipe, or the name of a shipped one")
    parser.add_argument(
        "--layout",
        action="append",
        metavar="KEY=VALUE,...",
        help="a layout: any keys of [parallel], such as tensor=2,pipeline=2,schedule=gpipe (repeatable)",
    )
    parser.add_argument(
        "--processes", type=int, metavar="W", help="instead: all layouts that fit in W processes, every mode among them"
    )
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of each (default: 20)")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="of all layouts and the reference (default: fp32)"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        help="largest relative difference of the loss, at any step (default: 1e-4; for bf16 1e-3)",
    )
    parser.add_argument(
        "--norm-tolerance",
        type=float,
        help="largest relative difference of the gradient norm at step 1 (default: 1e-4; for bf16 5e-3)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="for parity.json and parity.png (default: the run directory)"
    )
    parser.add_argument("--no-picture", action="store_true", help="write no parity.png, which needs matplotlib")


def run(args: argparse.Namespace) -> int:
    with signals_unwind():
        return run_all(args)


def run_all(args: argparse.Namespace) -> int:
    config = read_run_config(args.recipe, args.overrides)
    tolerances = check_arguments(args)
    check_tokenizer(config)
    open_data(config)
    choices, skipped = wanted_layouts(config, args)
    one = fit_micro_batch(ParallelConfig(precision=args.precision), workload_of(config))
    yardsticks = other_splits(one, config) if args.precision == "bf16" else []
    check_devices(config, max(choice.world_size for choice in choices))
    folder = make_room(args.output, config)
    tasks = [task(config, choice) for choice in (one, *yardsticks, *choices)]
    results: list[Result] = []
    stopped_by = None
    try:
        for result in measure_all(tasks, steps=args.steps):
            results.append(result)
            counted = f"[{len(results)}/{len(tasks)}] {result.name}"
            print(
                f"{counted}: loss {result.losses[-1]:.6f} after {args.steps} steps, {result.seconds:.1f} s", flush=True
            )
    except (ConfigError, RankFailed) as error:
        if isinstance(error, ConfigError) and not results:
            raise  # the recipe's mistake; what only a later layout runs into, such as a loss of NaN, is a finding
        print(f"triaxial: error: {error}", file=sys.stderr, flush=True)
        stopped_by = str(error)
    rows = [
        compare(choice, result, results[0])
        for choice, result in zip((one, *yardsticks, *choices), results, strict=False)  # it may have stopped early
    ]
    n = 1 + len(yardsticks)
    report = Report(args.precision, args.steps, tolerances, rows[:1], rows[1:n], rows[n:], skipped, stopped_by)
    return conclude(report, folder, picture=not args.no_picture)


def check_arguments(args: argparse.Namespace) -> Tolerances:
    """The tolerances; ConfigError for an argument that cannot be."""
    if args.steps < 1:
        raise ConfigError(f"--steps {args.steps} must be at least 1")
    if args.layout is not None and args.processes is not None:
        raise ConfigError(
            "--layout and --processes exclude each other: name the layouts, or let all that fit be chosen"
        )
    if args.processes is not None and args.processes < 1:
        raise ConfigError(f"--processes {args.processes} must be at least 1")
    if args.layout is not None or args.processes is not None:
        for word in args.overrides:
            if word.startswith("--parallel."):
                raise ConfigError(
                    f"{word}: --layout and --processes say what [parallel] is; give it as --layout KEY=VALUE"
                )
    if ClusterEnvironment.from_environment().master_addr is not None:
        raise ConfigError("`triaxial parity` starts its own processes: run it without torchrun")
    loss, norm = DEFAULT_TOLERANCES[args.precision]
    given = {"--tolerance": args.tolerance, "--norm-tolerance": args.norm_tolerance}
    for name, value in given.items():
        if value is not None and not 0 <= value < math.inf:
            raise ConfigError(f"{name} {value} must be a number of at least 0, such as 1e-4")
    if not args.no_picture:  # now, not when all has been trained
        try:
            import_extra("matplotlib", extra="plots")
        except ConfigError as error:
            raise ConfigError(f"{error}; or ask for no picture: --no-picture") from None
    return Tolerances(
        loss if args.tolerance is None else args.tolerance, norm if args.norm_tolerance is None else args.norm_tolerance
    )


def wanted_layouts(config: RunConfig, args: argparse.Namespace) -> tuple[list[Choice], list[Skipped]]:
    """Those named, those that fit, or the recipe's own; a named one that cannot be is a ConfigError."""
    workload = workload_of(config)
    if args.processes is not None:
        choices, skipped = choose_layouts(args.processes, workload, precision=args.precision)
        if not choices:
            raise ConfigError(f"--processes {args.processes}: no layout but one process fits this recipe")
        return choices, skipped
    if args.layout is not None:
        return [named_layout(text, workload, args.precision) for text in args.layout], []
    own = replace(config.parallel, precision=args.precision)
    if is_one_process(own):
        raise ConfigError(
            "this recipe runs in one process: name a layout, --layout tensor=2, or all that fit, --processes 4"
        )
    return [fit_micro_batch(own, workload)], []


def named_layout(text: str, workload: Workload, precision: str) -> Choice:
    """The layout of one --layout, whose keys are read as the recipe's [parallel]."""
    words = [word.strip() for word in re.split(r",(?![^\[]*\])", text)]  # commas in brackets are a list's own
    for word in words:
        if "=" not in word:
            raise ConfigError(f"--layout '{text}': '{word}' must be KEY=VALUE, for example tensor=2,pipeline=2")
    table = apply_overrides({}, [f"--parallel.{word}" for word in words])["parallel"]
    if "precision" in table:
        raise ConfigError(f"--layout {text}: precision is that of all layouts and the reference; use --precision")
    try:
        parallel = build(ParallelConfig, {"precision": precision, **table}, where="parallel")
        choice = fit_micro_batch(parallel, workload)
        if is_one_process(parallel):
            raise ConfigError("this is one process, which is the reference; try tensor=2, pipeline=2 or data=2")
        return choice
    except ConfigError as error:
        raise ConfigError(f"--layout {text}: {error}") from None


def workload_of(config: RunConfig) -> Workload:
    return Workload(config.model, config.batch, config.data.seq_len, device_type(config))


def device_type(config: RunConfig) -> str:
    """What `pick_device` will choose on the ranks; this process itself takes no GPU."""
    return "cpu" if config.run.device == "cpu" or not torch.cuda.is_available() else "cuda"


def other_splits(one: Choice, config: RunConfig) -> list[Choice]:
    """One process with up to three other micro-batches: the yardstick of what bf16's rounding does.

    Smaller ones first, the nearest of them, since a larger one might not fit in memory; then the nearest larger ones.
    """
    sequences = config.batch.global_batch_tokens // config.data.seq_len
    sizes = [size for size in range(1, sequences + 1) if sequences % size == 0]
    at = sizes.index(one.micro_batch_size)
    nearest = [*reversed(sizes[:at]), *sizes[at + 1 :]]
    return [replace(one, micro_batch_size=size) for size in sorted(nearest[:3])]


def check_devices(config: RunConfig, processes: int) -> None:
    if device_type(config) == "cpu":
        return
    if processes > torch.cuda.device_count():
        raise ConfigError(
            f"these layouts need {processes} processes with a GPU each, and there are {torch.cuda.device_count()}; "
            f"choose smaller layouts, or --run.device cpu"
        )


def task(config: RunConfig, choice: Choice) -> Task:
    batch = replace(config.batch, micro_batch_size=choice.micro_batch_size)
    return Task(layout_text(choice.parallel), choice.world_size, replace(config, parallel=choice.parallel, batch=batch))


def make_room(output: Path | None, config: RunConfig) -> Path:
    """The folder for the results, without an earlier run's; ConfigError where they could not be written."""
    named, folder = ("run.directory", config.run.directory) if output is None else ("--output", output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in RESULTS:
            (folder / name).unlink(missing_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"{named} = '{folder}' must be a folder to write {' and '.join(RESULTS)} to: {error.strerror}"
        ) from None
    return folder


def conclude(report: Report, folder: Path, *, picture: bool) -> int:
    """Tell and write all; the exit status."""
    if report.reference:
        print_report(report)
    files = [folder / name for name in RESULTS]
    replace_file(files[0], lambda path: write_json(report, path))
    if picture and report.reference:
        replace_file(files[1], lambda path: draw(report, path))
    print(f"written to {' and '.join(str(file) for file in files if file.exists())}")
    for failure in report.failures:
        print(f"triaxial: parity: {failure.splitlines()[0]}")
    return 1 if report.failures else 0


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Whole or not there, whenever this process is stopped."""
    unfinished = path.with_name(f".unfinished_{path.name}")
    try:
        write(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
