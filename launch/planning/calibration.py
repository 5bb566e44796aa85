"""`triaxial plan --calibrate RUN`: scale a stack by what a run of it measured."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gpt.errors import ConfigError
from launch.config.run_config import RunConfig, from_dict, layout_of, with_defaults
from launch.runs.history import RunHistory, read_history
from launch.runs.prediction import measured_step_s
from parallel.planner.choice.candidates import PlanRequest, job_of
from parallel.planner.hardware.tables import Cluster, Gpu
from parallel.planner.published.validate import CALIBRATED_SPREAD
from parallel.planner.step_time.job import Job
from parallel.planner.step_time.step import step_time

SAME_PEAK = 0.05  # relative: peaks that differ more are of another device
MIN_STEPS = 3


@dataclass(frozen=True)
class Calibration:
    """A run's median step and its prediction, in seconds. `ratio`: measured over predicted."""

    run: str
    measured: float
    predicted: float

    @property
    def ratio(self) -> float:
        return self.measured / self.predicted

    def __str__(self) -> str:
        return (
            f"calibrated on {self.run}: measured {self.measured:.3g} s a step, predicted {self.predicted:.3g} s, ratio "
            f"{self.ratio:.3f}"
        )


def calibrate(directory: Path, request: PlanRequest) -> tuple[PlanRequest, Calibration]:
    """Return the request with a stack whose times are scaled by the run, and the comparison.

    ConfigError: the run has too few steps, another precision, or ran on a device with another peak than the GPU's.
    """
    history = read_history(directory)
    if not history.config:
        raise ConfigError(f"--calibrate {directory} is invalid: the run has no config.json. Use the directory of a run")
    config = from_dict(with_defaults(history.config))
    if config.parallel.precision != request.parallel.precision:
        raise ConfigError(
            f"--calibrate {directory} is invalid: it ran in {config.parallel.precision}, and the plan is for "
            f"{request.parallel.precision}. Use a run in the same precision"
        )
    times = history.metrics.get("step_s")
    if times is None or len(times.recent) < MIN_STEPS:
        raise ConfigError(
            f"--calibrate {directory} is invalid: it logged fewer than {MIN_STEPS} steps. Train it longer"
        )
    job = _job(history, config, request)
    measured = measured_step_s(history, tokens=job.tokens)
    if measured is None:
        raise ConfigError(
            f"--calibrate {directory} is invalid: its newest steps have another batch than the full one of the "
            f"recipe. Train it past the batch ramp"
        )
    cluster = _cluster(history, job, request.cluster, measured=measured)
    found = Calibration(str(directory), measured, step_time(job, cluster, request.stack).seconds)
    stack = replace(
        request.stack, name=f"{request.stack.name}, calibrated", scale=found.ratio, spread=CALIBRATED_SPREAD
    )
    return replace(request, stack=stack), found


def _job(history: RunHistory, config: RunConfig, request: PlanRequest) -> Job:
    """The step that the run repeated."""
    processes = history.account.processes if history.account is not None else []
    sizes = config.parallel
    world_size = processes[-1].world_size if processes else sizes.tensor * sizes.pipeline * (sizes.data or 1)
    own = replace(request, model=config.model, batch=config.batch, seq_len=config.data.seq_len, parallel=sizes)
    return job_of(own, sizes, layout_of(config, world_size), config.batch.micro_batch_size)


def _cluster(history: RunHistory, job: Job, planned: Cluster, *, measured: float) -> Cluster:
    """The planned cluster with the nodes that the run had. ConfigError: the run's devices are others."""
    kept = history.prediction
    if kept is None:
        _check_device(history, job, planned.gpu, measured=measured)
        return planned
    if kept.device != planned.gpu.name:
        raise ConfigError(
            f"--calibrate {history.directory} is invalid: it ran on {kept.device}, and the plan is for "
            f"{planned.gpu.name}. Use a run on {planned.gpu.name}"
        )
    return replace(planned, node=kept.node)


def _check_device(history: RunHistory, job: Job, gpu: Gpu, *, measured: float) -> None:
    """ConfigError if the run's MFU says that its devices have another peak than the GPU."""
    mfu = history.metrics.get("mfu")
    if mfu is None:
        return
    peak = job.flops / measured / float(np.median(mfu.recent)) / job.world_size / 1e12
    if abs(peak / gpu.peak - 1) > SAME_PEAK:
        raise ConfigError(
            f"--calibrate {history.directory} is invalid: it ran on devices with a peak of {peak:.4g} TFLOP/s, but "
            f"{gpu.name} has {gpu.peak:g}. Use a run on {gpu.name}, or describe its device with --hardware"
        )
