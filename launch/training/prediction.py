"""Predict a run's step when it starts, on hardware that the planner knows, and keep it in the run directory."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gpt.errors import ConfigError
from gpt.files.atomic import replace_file
from gpt.telemetry.memory import memory_values
from launch.config.run_config import RunConfig
from launch.processes.environment import ClusterEnvironment
from launch.profiling.machine_profile import SPREAD, identity_here, kept_at, machine_cluster
from launch.runs.prediction import PREDICTION, KeptPrediction
from parallel.layout.layout import Layout
from parallel.planner.choice.candidates import PlanRequest, job_of
from parallel.planner.choice.footprint import rank_footprint
from parallel.planner.hardware.tables import Cluster, Stack, find, find_gpu, read_hardware
from parallel.planner.machine.profile import difference, read_profile
from parallel.planner.step_time.step import step_time


@dataclass(frozen=True)
class KnownMachine:
    """Hardware that the planner knows, and the profile of this program on it.

    `base_bytes`: of this process before it has a model, where the run measures the memory of the whole process.
    """

    cluster: Cluster
    stack: Stack
    base_bytes: int = 0


def known_machine(config: RunConfig, environment: ClusterEnvironment, device: torch.device) -> KnownMachine | None:
    """The machine of a run, None on other ranks than the main one and if the planner does not know it."""
    if environment.rank != 0:
        return None
    if device.type == "cuda":
        return known_gpu(torch.cuda.get_device_name(device), config, environment)
    return known_cpu(config, environment) if device.type == "cpu" else None


def known_cpu(config: RunConfig, environment: ClusterEnvironment) -> KnownMachine | None:
    """This machine by the profile that `triaxial doctor --measure` kept.

    None without one, or if it lacks the run's precision, ranks or threads, and for compiled blocks.
    """
    machine = identity_here()
    file, ranks = kept_at(machine), environment.world_size
    if config.parallel.compile or ranks != environment.local_world_size or not file.exists():
        return None
    try:
        profile = read_profile(file)
    except ConfigError:
        return None
    threads = [tables.threads for tables in profile.by_ranks if tables.ranks == ranks]
    if threads != [torch.get_num_threads()] or config.parallel.precision not in profile.precisions:
        return None
    if difference(profile.machine, machine):
        return None
    stack = replace(read_hardware().stacks["triaxial"], name="measured on this machine", spread=SPREAD)
    base_bytes = int(memory_values().get("memory/resident_bytes", 0))
    return KnownMachine(machine_cluster(profile, None, ranks=ranks), stack, base_bytes)


def known_gpu(name: str, config: RunConfig, environment: ClusterEnvironment) -> KnownMachine | None:
    """The machine with the GPU that a driver names so, on its usual network. A part of a GPU is none."""
    if "MIG" in name.upper() or config.parallel.precision == "fp32":  # fp32 depends on the setting of TF32
        return None
    hardware = read_hardware()
    try:
        gpu = find_gpu(name, hardware.gpus)
    except ConfigError:
        return None
    network = find("network", gpu.network, hardware.networks)
    several = environment.world_size > environment.local_world_size
    node = environment.local_world_size if several else network.node
    stack = hardware.stacks["triaxial" if config.parallel.compile else "triaxial-eager"]
    return KnownMachine(Cluster(gpu, network, node), stack)


def predict(config: RunConfig, layout: Layout, machine: KnownMachine, *, peak: float) -> KeptPrediction | None:
    """Predict the run's full step, None if the planner does not model it. `peak`: FLOP/s of all devices, or 0."""
    if not config.predicts_tokens or config.parallel.engine != "native" or config.adapter is not None:
        return None
    request = PlanRequest(
        config.model,
        config.batch,
        config.data.seq_len,
        config.parallel,
        machine.cluster,
        machine.stack,
        restarts_positions=config.restarts_positions,
    )
    job = job_of(request, config.parallel, layout, config.batch.micro_batch_size)
    try:
        found = step_time(job, machine.cluster, machine.stack)
    except ConfigError:  # the GPU lacks the precision
        return None
    return KeptPrediction(
        machine.cluster.gpu.name,
        machine.cluster.network.name,
        machine.cluster.node,
        machine.stack.name,
        job.tokens,
        found.seconds,
        found.low,
        found.high,
        mfu=job.flops / found.seconds / peak if peak else None,
        peak_bytes=None if config.parallel.offload else round(machine.base_bytes + rank_footprint(job, 0).peak),
        base_bytes=machine.base_bytes,
    )


def keep_prediction(config: RunConfig, layout: Layout, machine: KnownMachine | None, *, peak: float) -> list[str]:
    """Predict the run's step and write it to the run directory; return a line for the console. On the main rank.

    On hardware that the planner does not know, nothing is written or said. `peak`: FLOP/s of all devices, or 0.
    """
    found = predict(config, layout, machine, peak=peak) if machine is not None else None
    return write_prediction(config.run.directory, found)


def write_prediction(directory: Path, found: KeptPrediction | None) -> list[str]:
    """Write the prediction to the run directory, or remove that of an earlier start; return a line for the console."""
    path = directory / PREDICTION
    if found is None:
        path.unlink(missing_ok=True)
        return []
    replace_file(path, json.dumps(found.as_json(), indent=2) + "\n")
    mfu = "" if found.mfu is None else f", MFU {found.mfu:.1%}"
    peak = "" if found.peak_bytes is None else f", peak memory {found.peak_bytes / 2**30:.2f} GiB on the main rank"
    return [
        f"predicted: {found.step_s:.3g} s a step (90%: {found.low_s:.3g} to {found.high_s:.3g}){mfu}{peak}; stack "
        f"{found.stack} on {found.device}"
    ]
