"""The layouts that `triaxial parity` compares: those named, all that fit, or the recipe's own, on each engine."""

import argparse
import re
from dataclasses import replace

import torch

from gpt.errors import ConfigError
from launch.config.recipe import apply_overrides, build
from launch.config.run_config import RunConfig
from parallel.engines.capabilities import check_installed
from parallel.layout.config import EngineName, ParallelConfig
from parallel.planner.search import (
    Choice,
    Skipped,
    Workload,
    choose_layouts,
    fit_micro_batch,
    is_one_process,
    layout_text,
)

DEFAULT_ENGINE = ParallelConfig().engine
MAX_SPLITS = 3  # other micro-batch sizes of one process, as a yardstick


def wanted_layouts(
    config: RunConfig, args: argparse.Namespace, engines: list[EngineName]
) -> tuple[list[Choice], list[Skipped]]:
    """The layouts named, all that fit, or the recipe's own, on each of `engines` that takes them; the others' reasons.

    `engines` is empty if none was named. ConfigError if a named layout is impossible, or nothing is left.
    """
    workload = workload_of(config)
    if args.processes is not None:
        found = [
            choose_layouts(args.processes, workload, precision=args.precision, engine=engine)
            for engine in engines or [DEFAULT_ENGINE]
        ]
        choices, skipped = [[item for part in parts for item in part] for parts in zip(*found, strict=True)]
        if not choices:
            raise ConfigError(f"--processes {args.processes}: no layout of several processes fits this recipe")
        return choices, skipped
    if args.layout is not None:
        named = [(f"--layout {text}: ", layout_of_option(text, args)) for text in args.layout]
    else:
        named = [("", replace(config.parallel, precision=args.precision))]
    if not engines:
        return [named_layout(parallel, workload, option=option) for option, parallel in named], []
    return on_engines(named, engines, workload)


def on_engines(
    named: list[tuple[str, ParallelConfig]], engines: list[EngineName], workload: Workload
) -> tuple[list[Choice], list[Skipped]]:
    """Each layout on each engine; one that an engine does not take is skipped, with the reason."""
    choices, skipped = [], []
    for option, parallel in named:
        # a mistake in the layout itself is an error, whichever engine would run it
        named_layout(replace(parallel, engine=DEFAULT_ENGINE), workload, option=option, one_process=True)
        for engine in engines:
            layout = replace(parallel, engine=engine)
            try:
                choice = fit_micro_batch(layout, workload)
            except ConfigError as error:
                skipped.append(Skipped(layout_text(layout), str(error)))
                continue
            if not is_one_process(choice.parallel):
                choices.append(choice)
    if not choices:
        reasons = "; ".join(each.reason for each in skipped)
        raise ConfigError(f"no engine of --engines takes this layout{f': {reasons}' if reasons else ''}")
    return choices, skipped


def named_engines(text: str | None) -> list[EngineName]:
    """The engines of --engines, in its order; ConfigError if one is unknown, named twice or not installed."""
    engines: list[EngineName] = []
    for word in [] if text is None else text.split(","):
        try:
            engine = build(ParallelConfig, {"engine": word.strip()}, where="parallel").engine
        except ConfigError as error:
            raise ConfigError(f"--engines {text}: {error}") from None
        if engine in engines:
            raise ConfigError(f"--engines {text} is invalid: {engine} is there twice. Name each engine once")
        check_installed(engine)
        engines.append(engine)
    return engines


def layout_of_option(text: str, args: argparse.Namespace) -> ParallelConfig:
    """The layout of one --layout option; its keys are read like the recipe's [parallel]."""
    words = [word.strip() for word in re.split(r",(?![^\[]*\])", text)]  # commas in brackets belong to a list
    for word in words:
        if "=" not in word:
            raise ConfigError(f"--layout '{text}': '{word}' must be KEY=VALUE, for example tensor=2,pipeline=2")
    table = apply_overrides({}, [f"--parallel.{word}" for word in words])["parallel"]
    if "precision" in table:
        raise ConfigError(f"--layout {text}: precision is the same for all layouts and the reference. Use --precision")
    if "engine" in table and args.engines is not None:
        raise ConfigError(f"--layout {text}: the engines are those of --engines. Leave engine out of --layout")
    try:
        return build(ParallelConfig, {"precision": args.precision, **table}, where="parallel")
    except ConfigError as error:
        raise ConfigError(f"--layout {text}: {error}") from None


def named_layout(parallel: ParallelConfig, workload: Workload, *, option: str, one_process: bool = False) -> Choice:
    """The layout with a micro-batch size that fits. ConfigError, which begins with `option`, if it is impossible.

    One process is the reference, and so a mistake, unless `one_process`.
    """
    try:
        check_installed(parallel.engine)
        choice = fit_micro_batch(parallel, workload)
        if is_one_process(parallel) and not one_process:
            raise ConfigError(
                "this is one process, which is the reference. Try tensor=2, pipeline=2 or data=2"
                if option
                else "this recipe runs in one process. Name a layout (--layout tensor=2) or try all that fit "
                "(--processes 4)"
            )
        return choice
    except ConfigError as error:
        raise ConfigError(f"{option}{error}") from None


def workload_of(config: RunConfig) -> Workload:
    return Workload(
        config.model,
        config.batch,
        config.data.seq_len,
        device_type(config),
        restarts_positions=config.restarts_positions,
    )


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
