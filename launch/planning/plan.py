"""`triaxial plan`: search the layouts of a cluster, predict each, and explain the rejected ones."""

import argparse
import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from gpt.errors import ConfigError, either, escaped
from gpt.telemetry.screen import counted
from launch.config.objectives import PROGRAMS
from launch.config.recipe import find_recipe, read_toml
from launch.config.run_config import RunConfig, layout_of, recipe_table
from launch.planning.calibration import calibrate
from launch.planning.dry_run import measure, ranks_to_show
from launch.planning.measured_plan import (
    at_ranks,
    measured_option,
    measured_request,
    notes_on_profile,
    wanted_profile,
)
from launch.planning.plan_figures import figures
from launch.planning.plan_files import RECIPE_MARK, SCRIPT_MARK, check_not_lost, recipe_text, sbatch_text
from launch.planning.plan_page import plan_page
from launch.planning.plan_report import (
    PlannedLayout,
    as_json,
    knee_of,
    layout_table,
    memory_table,
    rejected_lines,
    scaling_table,
)
from launch.planning.plan_request import (
    GpuOption,
    check_amounts,
    gpus_here,
    notes_on_adapter,
    notes_on_engine,
    parse_deadline,
    parse_gpus,
    plan_request,
)
from launch.planning.policy_plan import policy_json, policy_lines, policy_plan
from launch.processes.error_reports import report_mistake
from launch.processes.terminal import work_progress
from launch.reports.written import Emit, check_destination, write_page
from launch.training.build import build_objective
from parallel.engines.settings import EngineSettings
from parallel.planner.choice.candidates import Candidate, PlanRequest, candidate
from parallel.planner.choice.ranking import (
    GIB,
    MEMORY_RULE,
    USABLE,
    RankedLayout,
    Ranking,
    layout_words,
    rank_layouts,
    rank_one,
)
from parallel.planner.hardware.tables import Hardware, find_gpu, taken_as

Planned = list[tuple[Ranking, list[PlannedLayout]]]


class DeadlineMissed(ConfigError):
    """No plan ends before --deadline. The figures of all plans are still emitted."""


def plan(args: argparse.Namespace, config: RunConfig, hardware: Hardware, emit: Emit) -> int:
    """Print the plan of a recipe, and write the files that were asked for."""
    check_amounts(args)
    deadline_s, calibration = parse_deadline(args.deadline), None
    profile = wanted_profile(args)
    if profile is not None:
        wanted = measured_option(args, profile, hardware)
        request = measured_request(args, config, hardware, profile, ranks=wanted.counts[-1])
        print(f"by the profile of this machine of {profile.measured_at}")
        _print(notes_on_profile(config, profile))
    else:
        wanted = option_of(args)
        gpu = find_gpu(wanted.name, hardware.gpus)
        _print([note] if (note := taken_as(wanted.name, gpu, hardware.gpus)) else [])
        request = plan_request(args, config, hardware, gpu)
        _print(notes_on_engine(args, config))
    _print(notes_on_adapter(config))
    if args.calibrate is not None and profile is None:
        request, calibration = calibrate(args.calibrate, request)
        print(calibration)
    for name in ("html", "write_recipe", "write_sbatch"):
        check_destination(f"--{name.replace('_', '-')}", getattr(args, name))
    check_not_lost("--write-recipe", args.write_recipe, RECIPE_MARK)
    check_not_lost("--write-sbatch", args.write_sbatch, SCRIPT_MARK)
    if config.objective.kind in PROGRAMS:
        return _plan_policy(args, config, request, wanted.counts[-1], emit)
    found = [
        _plan_one(args, config, request if profile is None else at_ranks(request, profile, count), count)
        for count in wanted.counts
    ]
    _show(args, found, request)
    figures_json = {
        **as_json(found, request),
        "calibration": None if calibration is None else dataclasses.asdict(calibration),
    }
    try:
        best = chosen(found, deadline_s, text=args.deadline, fitting_near=partial(numbers_that_fit, request))
    except DeadlineMissed as error:
        emit({**figures_json, "missed": str(error)})
        report_mistake(str(error), exit_status=error.exit_status)
        return error.exit_status
    knee = knee_of([layouts[0] for _, layouts in found if layouts])
    _write(args, found, request, best, knee if len(found) > 1 else None)
    emit(figures_json)
    return 0


def _plan_policy(args: argparse.Namespace, config: RunConfig, request: PlanRequest, gpus: int, emit: Emit) -> int:
    """Plan PPO or GRPO: rollouts, scores and updates. ConfigError: an option that is for training alone."""
    for name in ("html", "dry_run", "layout", "deadline"):
        if getattr(args, name):
            raise ConfigError(
                f"--{name.replace('_', '-')} with objective.kind = '{config.objective.kind}' is invalid: an iteration "
                f"has other parts than a training step. Leave it out"
            )
    found, lines = policy_plan(config, request, gpus, keep=args.keep)
    _print([f"{gpus:,} {request.cluster.gpu.name}, stack {request.stack.name}", *lines])
    _print(policy_lines(found, config, args.price_per_gpu_hour))
    title = _title(args)
    _write_files(args, found[0].layout, request, gpus, title)
    emit({"gpu": request.cluster.gpu.name, "gpus": gpus, "layouts": policy_json(found, config)})
    return 0


def _title(args: argparse.Namespace) -> str:
    """Of a page or file; the name of a shipped recipe may hold a dot, as in gpt3_6.7b."""
    return f"Plan of {Path(args.recipe).name.removesuffix('.toml')}"


def option_of(args: argparse.Namespace) -> GpuOption:
    """The GPUs of --gpus or --here. ConfigError: none or both are given."""
    if (args.gpus is None) == (not args.here):
        raise ConfigError("name the GPUs once: use --gpus 1024xH100, or --here for those of this machine")
    return parse_gpus(gpus_here() if args.here else args.gpus)


def chosen(
    found: Planned,
    deadline_s: float | None,
    *,
    text: str | None = None,
    fitting_near: Callable[[int], list[int]] = lambda gpus: [],
) -> PlannedLayout:
    """The cheapest run within the deadline, in GPU-hours; without a deadline the fastest of the largest cluster.

    ConfigError: nothing fits. DeadlineMissed: the deadline is too early; it names the closest plan.
    `fitting_near`: numbers of GPUs near one that have a layout.
    """
    every = [each for _, layouts in found for each in layouts]
    if not every:
        ranking = found[-1][0]
        memory = next((group for group in ranking.rejected if group.rule == MEMORY_RULE), None)
        count = counted(ranking.gpus, "GPU")
        if memory is None and (fitting := fitting_near(ranking.gpus)):
            raise ConfigError(f"no layout of {count} divides this model and its batch. Use {either(fitting)} GPUs")
        why = (memory or ranking.rejected[0]).reason if ranking.rejected else "no layout has this number of GPUs"
        raise ConfigError(f"no layout of {count} can train this: {why}")
    if deadline_s is None:
        return next(layouts for _, layouts in reversed(found) if layouts)[0]
    in_time = [each for each in every if each.run.seconds <= deadline_s]
    if not in_time:
        closest = min(every, key=lambda each: each.run.seconds)
        more = math.ceil(closest.gpus * closest.run.seconds / deadline_s)
        raise DeadlineMissed(
            f"--deadline {text} is invalid: the fastest plan, {closest.ranked.words} on {closest.gpus:,} GPUs, takes "
            f"{closest.run.days:,.1f} days. Use at least {more:,} GPUs, if the speed grows with them, or a later "
            f"deadline"
        )
    return min(in_time, key=lambda each: each.gpus * each.run.seconds)


def numbers_that_fit(request: PlanRequest, gpus: int) -> list[int]:
    """The nearest number of GPUs below and above that has a layout, of whole nodes and powers of two."""
    node, power = request.cluster.node, 1 << gpus.bit_length()
    below = sorted({(gpus - 1) // node * node, power // 2, power // 4} - {0, gpus}, reverse=True)
    above = sorted({gpus // node * node + node, power})
    sides = ([n for n in below if n < gpus], above)
    found = [next((n for n in side if rank_layouts(request, n, keep=1).layouts), None) for side in sides]
    return [n for n in found if n is not None]


def _plan_one(
    args: argparse.Namespace, config: RunConfig, request: PlanRequest, gpus: int
) -> tuple[Ranking, list[PlannedLayout]]:
    if args.layout:
        given = given_layout(config, request, gpus)
        ranking = Ranking(gpus, (rank_one(request, given),), 1, ())
    else:
        with work_progress() as progress:
            progress.start(f"searching layouts of {gpus:,} GPUs")
            ranking = rank_layouts(request, gpus, keep=args.keep)
    return ranking, [_planned(args, config, request, each) for each in ranking.layouts]


def given_layout(config: RunConfig, request: PlanRequest, gpus: int) -> Candidate:
    """The recipe's own layout on `gpus` GPUs. ConfigError: the rule that it breaks."""
    layout = layout_of(config, gpus, option="--gpus")
    parallel = dataclasses.replace(request.parallel, data=layout.data)
    return candidate(request, parallel, config.batch.micro_batch_size)


def _planned(args: argparse.Namespace, config: RunConfig, request: PlanRequest, ranked: RankedLayout) -> PlannedLayout:
    run = figures(
        ranked,
        request,
        total_tokens=config.train.total_tokens,
        price=args.price_per_gpu_hour,
        save_s=args.save_seconds,
        failure_hours=args.node_hours_between_failures,
    )
    peak = None
    if args.dry_run:
        peak = measured_peak(config, ranked.candidate)
    return PlannedLayout(ranked, run, peak)


def measured_peak(config: RunConfig, each: Candidate) -> int:
    """Peak bytes of the fullest rank by the dry run: real code on fake tensors, one process for each kind of rank."""
    settings = EngineSettings(
        config.model, each.parallel, each.layout, config.optimizer, each.micro_batch_size, seed=config.run.seed
    )
    ranks = list(ranks_to_show(settings))
    reports = measure(settings, build_objective(config), ranks, data=config.data)
    return max(report.peak_bytes for report in reports)


def _show(args: argparse.Namespace, found: Planned, request: PlanRequest) -> None:
    cluster = request.cluster
    print(
        f"{cluster.gpu.name}, nodes of {cluster.node}, network {cluster.network.name} with "
        f"{cluster.network.gb_per_s:g} GB/s a GPU, stack {request.stack.name}"
    )
    curve = [layouts[0] for _, layouts in found if layouts]
    if len(found) > 1 and curve:
        _print(["", *scaling_table(curve, knee_of(curve))])
    ranking, planned = found[-1]
    fitting = "layout fits" if ranking.fitting == 1 else "layouts fit"
    found_words = "the recipe's layout" if args.layout else f"{ranking.fitting:,} {fitting}"
    print(f"\n{counted(ranking.gpus, 'GPU')}: {found_words}")
    if planned:
        run = planned[0].run
        _print([*layout_table(planned, request), "", "memory of the fullest rank, GiB", *memory_table(planned), ""])
        print(
            f"save every {run.checkpoint_every_s / 60:,.0f} minutes: a save takes {run.save_s:,.0f} s, a failure comes "
            f"every {run.failure_every_s / 3600:,.1f} hours; together they cost {run.lost:.1%} of the days above"
        )
        limit = USABLE * cluster.gpu.memory_bytes
        if planned[0].ranked.memory.peak > limit:
            print(f"this layout does not fit: {limit / GIB:.1f} GiB of the GPU are usable")
    if ranking.rejected:
        few = rejected_lines(ranking, most=12 if args.rejected else 1 if planned else 3)
        _print(["", "rejected:", *few])


def _write(
    args: argparse.Namespace, found: Planned, request: PlanRequest, best: PlannedLayout, knee: int | None
) -> None:
    title = _title(args)
    if args.html is not None:
        write_page("--html", args.html, plan_page(title, found, request, knee=knee))
        print(f"wrote {args.html}")
    _write_files(args, best.ranked.candidate, request, best.gpus, title)


def _write_files(args: argparse.Namespace, best: Candidate, request: PlanRequest, gpus: int, title: str) -> None:
    """Write the recipe and the Slurm script of a layout, where they are wanted."""
    words = layout_words(best.parallel, best.micro_batch_size)
    if args.write_recipe is not None:
        table = recipe_table(read_toml(find_recipe(args.recipe)), args.overrides)
        note = f"{title} for {gpus:,} {request.cluster.gpu.name}{RECIPE_MARK}{words}"
        write_page("--write-recipe", args.write_recipe, recipe_text(table, best, note=note))
        print(f"wrote {args.write_recipe}: {words}")
    if args.write_sbatch is not None:
        node = min(request.cluster.node, gpus)
        recipe = args.write_recipe or find_recipe(args.recipe)
        text = sbatch_text(recipe, script=args.write_sbatch, nodes=-(-gpus // node), gpus_per_node=node)
        write_page("--write-sbatch", args.write_sbatch, text)
        print(f"wrote {args.write_sbatch}")


def _print(lines: Sequence[str]) -> None:
    if lines:
        print(escaped("\n".join(lines)))  # names of hardware may be a stranger's
