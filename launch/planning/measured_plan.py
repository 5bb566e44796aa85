"""`triaxial plan` on a measured machine: `--here` with its kept profile, or `--calibrate PROFILE`."""

import argparse
from dataclasses import replace

import torch

from gpt.errors import ConfigError
from launch.config.run_config import RunConfig
from launch.planning.plan_request import GpuOption, parse_gpus, plan_request
from launch.profiling.machine_profile import SPREAD, identity_here, kept_at, machine_cluster, profile_for_here
from parallel.planner.choice.candidates import PlanRequest
from parallel.planner.hardware.tables import Gpu, Hardware, find_gpu
from parallel.planner.machine.profile import MachineProfile, is_profile


def wanted_profile(args: argparse.Namespace) -> MachineProfile | None:
    """The profile that the options name; None if they name a run or GPUs.

    ConfigError: it does not hold on this machine, or `--here` on a machine with neither a profile nor a GPU.
    """
    if args.calibrate is not None:
        return profile_for_here(args.calibrate) if is_profile(args.calibrate) else None
    if not args.here or (torch.cuda.is_available() and not kept_at(identity_here()).exists()):
        return None
    return profile_for_here(None)


def measured_option(args: argparse.Namespace, profile: MachineProfile, hardware: Hardware) -> GpuOption:
    """The numbers of ranks to plan for: those of --gpus, else all that were measured.

    ConfigError: --gpus names another device than the profile's, or a number of ranks that was not measured.
    """
    counts = tuple(sorted(tables.ranks for tables in profile.by_ranks))
    known = _known_gpu(profile, hardware)
    name = (known.name if known is not None else profile.machine.gpu) if profile.machine.gpus else "CPU"
    if args.gpus is None:
        return GpuOption(counts, name)
    if args.here:
        raise ConfigError("name the GPUs once: use --gpus, or --here for those of this machine")
    given = parse_gpus(args.gpus)
    same = given.name.upper() == name.upper()
    if not same and (known is None or find_gpu(given.name, hardware.gpus) != known):
        raise ConfigError(
            f"--gpus {args.gpus} is invalid with this profile: it is of {name}, not {given.name}. Use "
            f"--gpus {counts[-1]}x{name}, or leave --calibrate out"
        )
    missing = [count for count in given.counts if count not in counts]
    if missing:
        raise ConfigError(
            f"--gpus {args.gpus} is invalid: the profile has times of {', '.join(map(str, counts))} ranks, not of "
            f"{missing[0]}. Measure them: triaxial doctor --measure --ranks {missing[0]}"
        )
    return given


def measured_request(
    args: argparse.Namespace, config: RunConfig, hardware: Hardware, profile: MachineProfile, *, ranks: int
) -> PlanRequest:
    """The planner's request for a recipe on this machine. ConfigError: the profile lacks the recipe's precision."""
    precision = config.parallel.precision
    if precision not in profile.precisions:
        raise ConfigError(
            f"parallel.precision = '{precision}' is invalid with this profile: it was measured in "
            f"{' and '.join(profile.precisions)}. Measure it: triaxial doctor --measure --precision {precision}"
        )
    cluster = machine_cluster(profile, _known_gpu(profile, hardware), ranks=ranks)
    given = argparse.Namespace(**{**vars(args), "network": None, "stack": "triaxial", "nodes_of": None})
    any_gpu = next(iter(hardware.gpus.values()))
    request = plan_request(given, config, hardware, any_gpu)
    parallel = replace(request.parallel, compile=False, async_tensor=False)
    stack = replace(request.stack, name="measured on this machine", spread=SPREAD)
    return replace(request, cluster=cluster, stack=stack, parallel=parallel)


def at_ranks(request: PlanRequest, profile: MachineProfile, ranks: int) -> PlanRequest:
    """The request, with each of `ranks` processes having its share of memory and speed."""
    known = request.cluster.gpu if profile.machine.gpus else None
    cluster = machine_cluster(profile, known, ranks=ranks)
    return replace(request, cluster=replace(cluster, machine=request.cluster.machine))


def notes_on_profile(config: RunConfig, profile: MachineProfile) -> list[str]:
    """Lines about settings of the recipe that the profile does not cover."""
    notes = []
    if config.parallel.compile:
        notes.append("note: the profile has no times of compiled blocks, so these are predictions of uncompiled ones")
    if config.parallel.engine != "native":
        notes.append("note: the profile has times of the native engine only")
    return notes


def _known_gpu(profile: MachineProfile, hardware: Hardware) -> Gpu | None:
    """The profile's GPU in the tables, None if they lack it or it has none."""
    if not profile.machine.gpus:
        return None
    try:
        return find_gpu(profile.machine.gpu, hardware.gpus)
    except ConfigError:
        return None
