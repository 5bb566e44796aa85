"""`triaxial parity`: train a recipe's first steps on many layouts and compare each with one process."""

import argparse
import math
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from gpt.errors import ConfigError, file_error
from gpt.files.atomic import replace_file
from launch.config.recipe import apply_overrides, build
from launch.config.run_config import RunConfig, read_run_config
from launch.parity.plot import draw_differences
from launch.parity.ranks import LayoutResult, LayoutTask, measure_all
from launch.parity.report import ParityReport, Tolerances, compare, json_text, print_report
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

# (loss at every step, gradient norm at step 1): bounds on rounding differences, measured in
# docs/results/training/layouts_agree.md.
DEFAULT_TOLERANCES = {"fp32": (1e-4, 1e-4), "bf16": (1e-3, 5e-3)}
RESULTS = ("parity.json", "parity.svg")
MAX_SPLITS = 3  # other micro-batch sizes of one process, as a yardstick


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
        "--processes",
        type=int,
        metavar="W",
        help="instead of --layout: all layouts that fit in W processes, in every mode",
    )
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps per layout (default: 20)")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="precision of all layouts and of the reference (default: fp32)",
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
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder for parity.json and parity.svg (default: the run directory)",
    )
    parser.add_argument("--no-picture", action="store_true", help="write no parity.svg")


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
    folder = clear_folder(args.output, config)
    tasks = [task(config, choice) for choice in (one, *yardsticks, *choices)]
    results: list[LayoutResult] = []
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
            raise  # a mistake in the recipe. A failure of a later layout only, such as a NaN loss, is a finding.
        print(f"triaxial: error: {error}", file=sys.stderr, flush=True)
        stopped_by = str(error)
    rows = [
        compare(choice, result, results[0])
        for choice, result in zip((one, *yardsticks, *choices), results, strict=False)  # a failure ends it early
    ]
    n = 1 + len(yardsticks)
    report = ParityReport(args.precision, args.steps, tolerances, rows[:1], rows[1:n], rows[n:], skipped, stopped_by)
    return conclude(report, folder, picture=not args.no_picture)


def check_arguments(args: argparse.Namespace) -> Tolerances:
    """The tolerances; ConfigError for an invalid argument."""
    if args.steps < 1:
        raise ConfigError(f"--steps {args.steps} is invalid: must be at least 1")
    if args.layout is not None and args.processes is not None:
        raise ConfigError(
            "--layout and --processes exclude each other. Name the layouts, or let --processes choose all that fit"
        )
    if args.processes is not None and args.processes < 1:
        raise ConfigError(f"--processes {args.processes} is invalid: must be at least 1")
    if args.layout is not None or args.processes is not None:
        for word in args.overrides:
            if word.startswith("--parallel."):
                raise ConfigError(
                    f"{word} is invalid: --layout and --processes replace [parallel]. Write it as --layout KEY=VALUE"
                )
    if ClusterEnvironment.from_environment().master_addr is not None:
        raise ConfigError("`triaxial parity` starts its own processes. Run it without torchrun")
    loss, norm = DEFAULT_TOLERANCES[args.precision]
    given = {"--tolerance": args.tolerance, "--norm-tolerance": args.norm_tolerance}
    for name, value in given.items():
        if value is not None and not 0 <= value < math.inf:
            raise ConfigError(f"{name} {value} is invalid: must be a number of at least 0, such as 1e-4")
    return Tolerances(
        loss if args.tolerance is None else args.tolerance, norm if args.norm_tolerance is None else args.norm_tolerance
    )


def wanted_layouts(config: RunConfig, args: argparse.Namespace) -> tuple[list[Choice], list[Skipped]]:
    """The layouts named, all that fit, or the recipe's own; ConfigError if a named one is impossible."""
    workload = workload_of(config)
    if args.processes is not None:
        choices, skipped = choose_layouts(args.processes, workload, precision=args.precision)
        if not choices:
            raise ConfigError(f"--processes {args.processes}: no layout of several processes fits this recipe")
        return choices, skipped
    if args.layout is not None:
        return [named_layout(text, workload, args.precision) for text in args.layout], []
    own = replace(config.parallel, precision=args.precision)
    if is_one_process(own):
        raise ConfigError(
            "this recipe runs in one process. Name a layout (--layout tensor=2) or try all that fit (--processes 4)"
        )
    return [fit_micro_batch(own, workload)], []


def named_layout(text: str, workload: Workload, precision: str) -> Choice:
    """The layout of one --layout option; its keys are read like the recipe's [parallel]."""
    words = [word.strip() for word in re.split(r",(?![^\[]*\])", text)]  # commas in brackets belong to a list
    for word in words:
        if "=" not in word:
            raise ConfigError(f"--layout '{text}': '{word}' must be KEY=VALUE, for example tensor=2,pipeline=2")
    table = apply_overrides({}, [f"--parallel.{word}" for word in words])["parallel"]
    if "precision" in table:
        raise ConfigError(f"--layout {text}: precision is the same for all layouts and the reference. Use --precision")
    try:
        parallel = build(ParallelConfig, {"precision": precision, **table}, where="parallel")
        choice = fit_micro_batch(parallel, workload)
        if is_one_process(parallel):
            raise ConfigError("this is one process, which is the reference. Try tensor=2, pipeline=2 or data=2")
        return choice
    except ConfigError as error:
        raise ConfigError(f"--layout {text}: {error}") from None


def workload_of(config: RunConfig) -> Workload:
    return Workload(config.model, config.batch, config.data.seq_len, device_type(config))


def device_type(config: RunConfig) -> str:
    """The device type that `pick_device` will choose on the ranks; this process itself uses no GPU."""
    return "cpu" if config.run.device == "cpu" or not torch.cuda.is_available() else "cuda"


def other_splits(one: Choice, config: RunConfig) -> list[Choice]:
    """One process with up to MAX_SPLITS other micro-batch sizes: a yardstick for the rounding differences of bf16.

    Prefer the nearest smaller sizes, because a larger one might not fit in memory; then the nearest larger ones.
    """
    sequences = config.batch.global_batch_tokens // config.data.seq_len
    sizes = [size for size in range(1, sequences + 1) if sequences % size == 0]
    at = sizes.index(one.micro_batch_size)
    nearest = [*reversed(sizes[:at]), *sizes[at + 1 :]]
    return [replace(one, micro_batch_size=size) for size in sorted(nearest[:MAX_SPLITS])]


def check_devices(config: RunConfig, processes: int) -> None:
    if device_type(config) == "cpu":
        return
    if processes > torch.cuda.device_count():
        raise ConfigError(
            f"these layouts need {processes} processes with one GPU each, but there are {torch.cuda.device_count()} "
            f"GPUs. Choose smaller layouts, or --run.device cpu"
        )


def task(config: RunConfig, choice: Choice) -> LayoutTask:
    batch = replace(config.batch, micro_batch_size=choice.micro_batch_size)
    return LayoutTask(
        layout_text(choice.parallel), choice.world_size, replace(config, parallel=choice.parallel, batch=batch)
    )


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


def conclude(report: ParityReport, folder: Path, *, picture: bool) -> int:
    """Print the report, write the files, and return the exit status."""
    if report.reference:
        print_report(report)
    files = [folder / name for name in RESULTS]
    replace_file(files[0], json_text(report))
    if picture and report.reference:
        replace_file(files[1], draw_differences(report))
    print(f"written to {' and '.join(str(file) for file in files if file.exists())}")
    for failure in report.failures:
        print(f"triaxial: parity: {failure.splitlines()[0]}")
    return 1 if report.failures else 0
