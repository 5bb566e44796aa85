"""Predict a training step from a machine's profile."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from gpt.errors import ConfigError
from parallel.planner.machine.costs import AloneCosts, block_tensors, fit_alone
from parallel.planner.machine.group_costs import (
    ONLY_COMPUTATION,
    GroupCosts,
    Passes,
    fit_group,
    passes_of,
    pipeline_span,
    send_seconds,
    stage_times,
    sync_seconds,
    tied_seconds,
)
from parallel.planner.machine.messages import Messages, message_curves, sharded
from parallel.planner.machine.profile import MachineProfile, RanksTables
from parallel.planner.machine.work import KernelTables, kernel_tables
from parallel.planner.step_time.job import Job, rank_parameters
from parallel.planner.step_time.kernels import Seconds


@dataclass(frozen=True, eq=False)
class RanksCosts:
    """Everything that prices a step of one number of ranks in one precision."""

    tables: KernelTables
    messages: Messages
    alone: AloneCosts
    group: GroupCosts | None  # None for one rank


@dataclass(frozen=True, eq=False)
class MeasuredMachine:
    """The costs of a machine. `fit` gives those of a number of ranks and a precision; the first call takes seconds."""

    ranks: tuple[int, ...]
    precisions: tuple[str, ...]
    fit: Callable[[int, str], RanksCosts]
    on_cpu: bool = False

    def of(self, job: Job) -> RanksCosts:
        """The costs for a job. ConfigError: its precision or its number of ranks was not measured."""
        if job.world_size in self.ranks and job.precision in self.precisions:
            return self.fit(job.world_size, job.precision)
        option = f"--precision {job.precision}" if job.precision not in self.precisions else f"--ranks {job.world_size}"
        raise ConfigError(
            f"the profile has no times of {job.world_size} ranks in {job.precision}: it was measured with "
            f"{_listed(self.ranks)} ranks in {_listed(self.precisions)}. Measure them: triaxial doctor --measure "
            f"{option}"
        )


@dataclass(frozen=True)
class MeasuredParts:
    """Seconds of a step by kind, on the busiest pipeline rank."""

    busy: Seconds
    pipeline: float
    bubble: float
    data: float
    optimizer: float

    @property
    def total(self) -> float:
        return self.busy.total + self.pipeline + self.bubble + self.data + self.optimizer


def measured_machine(profile: MachineProfile) -> MeasuredMachine:
    """The machine of a profile. Costs are fitted when a job first needs them, and kept."""
    by_ranks = {tables.ranks: tables for tables in profile.by_ranks}
    fit = cache(lambda ranks, precision: _ranks_costs(by_ranks[ranks], precision))
    return MeasuredMachine(tuple(sorted(by_ranks)), profile.precisions, fit, on_cpu=profile.machine.gpus == 0)


def _ranks_costs(tables: RanksTables, precision: str) -> RanksCosts:
    kernels, messages = kernel_tables(tables, precision), message_curves(tables)
    samples = [each for each in tables.samples if each.precision == precision]
    singles = [each for each in samples if each.job.world_size == 1]
    grouped = [each for each in samples if each.job.world_size > 1]
    alone = fit_alone(singles, kernels)
    group = fit_group(grouped, singles, kernels, alone, messages) if grouped else None
    return RanksCosts(kernels, messages, alone, group)


def measured_parts(job: Job, machine: MeasuredMachine) -> MeasuredParts:
    """The seconds of a step by the profile's tables. ConfigError: the profile lacks what the job needs."""
    costs = machine.of(job)
    group = costs.group
    axis = group.tensor_axis if group is not None else ONLY_COMPUTATION
    passes = passes_of(job, costs.tables, costs.alone, costs.messages, axis)
    up, down = stage_times(job, passes)
    own: dict[int, list[int]] = {}
    for stage in range(len(job.split)):
        own.setdefault(job.rank_of(stage), []).append(stage)
    busiest = max(own.values(), key=lambda stages: sum(up[i].total + down[i].total for i in stages))
    busy = sum((up[i] + down[i] for i in busiest), Seconds()).times(job.micro_batches)
    span, pipeline = busy.total, 0.0
    if job.pipeline > 1:
        span, pipeline = _pipelined(job, costs, passes, busy)
    return MeasuredParts(
        busy,
        pipeline,
        max(0.0, span - busy.total - pipeline),
        _data_seconds(job, costs, busy.total),
        _update_seconds(job, costs),
    )


def _pipelined(job: Job, costs: RanksCosts, passes: Passes, busy: Seconds) -> tuple[float, float]:
    """The span of a pipeline, and of it the time of the busiest rank that the schedule's own work takes."""
    assert costs.group is not None
    schedule = costs.group.schedules.get(job.schedule)
    if schedule is None:
        known = _listed(costs.group.schedules)
        raise ConfigError(
            f"parallel.schedule = '{job.schedule}' is invalid with a profile: it has times of {known}. Use one of them"
        )
    span = pipeline_span(job, passes, send_seconds(job, costs.messages), schedule)
    stages = len(job.split) // job.pipeline
    own = (schedule.factor - 1) * busy.total + 2 * stages * job.micro_batches * schedule.action
    return span, min(max(0.0, own), max(0.0, span - busy.total))


def _data_seconds(job: Job, costs: RanksCosts, computation: float) -> float:
    if job.data == 1 or costs.group is None:
        return sync_seconds(job, costs.alone, costs.messages)
    return costs.group.data.seconds(sharded(job, rank_parameters(job), costs.messages), computation)


def _update_seconds(job: Job, costs: RanksCosts) -> float:
    source = costs.alone if costs.group is None else costs.group
    shard = 1 if job.zero == 0 else job.shard
    tensors = math.ceil(job.model.n_layers / job.pipeline) * block_tensors(job.model) + 4
    own = source.tensor * tensors + source.updated * rank_parameters(job) / shard + source.update
    return own + tied_seconds(job, costs.messages)


def _listed(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)
