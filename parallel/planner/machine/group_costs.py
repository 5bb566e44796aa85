"""The costs of several ranks beyond kernels and messages, fitted to the profile's small steps of each axis."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from parallel.planner.machine.costs import AloneCosts, model_passes, size_of
from parallel.planner.machine.least_squares import nonnegative_fit
from parallel.planner.machine.messages import (
    Messages,
    Sharded,
    sharded,
    tensor_message_counts,
    tensor_messages,
    width,
)
from parallel.planner.machine.profile import EngineSample
from parallel.planner.machine.work import KernelTables
from parallel.planner.step_time.job import Job, rank_parameters
from parallel.planner.step_time.kernels import Seconds
from parallel.planner.step_time.schedules import StageTimes, step_makespan

ACTION_S = 0.1  # the largest overhead of one action of a schedule that is considered
MAX_SLOWDOWN = 4.0
TURNS = 12  # of the fit of an action's time and of the factor


@dataclass(frozen=True)
class DataCosts:
    """Seconds of a gather and a reduction for each block or end, and each weight; a factor of the time on the wire.

    `slowdown`: the share by which computation takes longer than in processes that do not wait for each other.
    """

    gather_group: float
    gather_weight: float
    reduce_group: float
    reduce_weight: float
    wire: float
    slowdown: float

    def seconds(self, moved: Sharded, computation: float) -> float:
        once = self.gather_group * moved.groups + self.gather_weight * moved.weights + self.wire * moved.gather_wire
        back = self.reduce_group * moved.groups + self.reduce_weight * moved.weights + self.wire * moved.reduce_wire
        return moved.gathers * once + moved.reductions * back + self.slowdown * computation


@dataclass(frozen=True)
class ScheduleCosts:
    """Seconds of each action of a pipeline schedule, and the factor of its computation's time."""

    action: float
    factor: float


@dataclass(frozen=True)
class TensorCosts:
    """A factor of tensor ranks' messages, seconds of waiting for each message, and `slowdown` as for `DataCosts`."""

    messages: float
    wait: float
    slowdown: float


ONLY_COMPUTATION = TensorCosts(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class GroupCosts:
    """Costs of several ranks, by axis. `tensor`, `updated`, `update`: the optimizer's, as for `AloneCosts`."""

    tensor_axis: TensorCosts
    data: DataCosts
    schedules: dict[str, ScheduleCosts]
    tensor: float
    updated: float
    update: float


@dataclass(frozen=True)
class Passes:
    """Seconds of a micro-batch: a block's forward and backward, and those of both ends of the model together."""

    forward: Seconds
    backward: Seconds
    ends_forward: Seconds
    ends_backward: Seconds

    def total(self, n_layers: int) -> float:
        """Of a model with this many blocks."""
        block, ends = self.forward.total + self.backward.total, self.ends_forward.total + self.ends_backward.total
        return n_layers * block + ends

    def times(self, factor: float) -> "Passes":
        each = (self.forward, self.backward, self.ends_forward, self.ends_backward)
        return Passes(*(seconds.times(factor) for seconds in each))


def passes_of(job: Job, tables: KernelTables, alone: AloneCosts, messages: Messages, costs: TensorCosts) -> Passes:
    """The passes of a micro-batch with the messages of tensor ranks."""
    passes = Passes(*model_passes(job, tables, alone))
    if job.tensor == 1:
        return passes
    of_block, of_ends = tensor_messages(job, messages)
    in_block, in_ends = tensor_message_counts(job)
    more = Seconds(tensor=costs.messages * of_block + costs.wait * in_block)
    at_ends = Seconds(tensor=costs.messages * of_ends + costs.wait * in_ends)
    slower = passes.times(1 + costs.slowdown)
    return Passes(
        slower.forward + more, slower.backward + more, slower.ends_forward + at_ends, slower.ends_backward + at_ends
    )


def stage_times(job: Job, passes: Passes) -> tuple[list[Seconds], list[Seconds]]:
    """Forward and backward of each stage. The loss is on the last; the embedding's backward is shared by both ends."""
    up = [passes.forward.times(n) for n in job.split]
    down = [passes.backward.times(n) for n in job.split]
    up[-1] += passes.ends_forward
    down[0] += passes.ends_backward.times(0.5)
    down[-1] += passes.ends_backward.times(0.5)
    return up, down


def pipeline_span(job: Job, passes: Passes, send: float, costs: ScheduleCosts) -> float:
    """Seconds from the first forward to the last backward."""
    up, down = stage_times(job, passes)
    splits = "zero_bubble" in job.schedule or (job.schedule == "dualpipev" and not job.whole_backward)
    share = down[0].attention / max(down[0].total, 1e-12)
    times = StageTimes(
        [each.total * costs.factor + costs.action for each in up],
        [each.total * costs.factor + costs.action * (2 if splits else 1) for each in down],
        0.5 + 0.15 * share if splits else 1.0,
        send,
    )
    return step_makespan(job.schedule, job.pipeline, job.micro_batches, times)


def send_seconds(job: Job, messages: Messages) -> float:
    """One message between pipeline ranks."""
    if job.pipeline == 1:
        return 0.0
    return messages.to_neighbour(job.rows * job.model.d_model * width(job) / job.sequence_shares)


def tied_seconds(job: Job, messages: Messages) -> float:
    """The exchange of the tied weight's gradients between the first and the last stage, once a step."""
    if not job.model.tied or job.rank_of(len(job.split) - 1) == 0:
        return 0.0
    return messages.to_neighbour(4 * job.model.padded_vocab_size * job.model.d_model / job.tensor)


def sync_seconds(job: Job, alone: AloneCosts, messages: Messages) -> float:
    """FSDP's seconds a step on a data axis of one rank."""
    moved = sharded(job, rank_parameters(job), messages)
    return alone.group * moved.groups + alone.gathered * moved.weights


def fit_group(
    samples: Sequence[EngineSample],
    singles: Sequence[EngineSample],
    tables: KernelTables,
    alone: AloneCosts,
    messages: Messages,
) -> GroupCosts:
    """The costs that explain the samples of each axis best. `singles`: the samples of one process.

    The error of a size's prediction for one process is taken out of those for several ranks first: by a sample of this
    size, else by one of other depth.
    """
    ratios: dict[tuple[object, ...], float] = {}
    for each in singles:
        if each.recompute == "none":
            found = passes_of(each.job, tables, alone, messages, ONLY_COMPUTATION).total(each.n_layers)
            ratios[size_of(each)] = (each.forward + each.backward) / found
            ratios.setdefault(_any_depth(each), ratios[size_of(each)])
    plain = {}
    for each in samples:
        ratio = ratios.get(size_of(each), ratios.get(_any_depth(each), 1.0))
        plain[each] = passes_of(each.job, tables, alone, messages, ONLY_COMPUTATION).times(ratio)
    update = nonnegative_fit(
        [(each.tensors, _updated(each.job), 1.0) for each in samples],
        [max(0.0, each.update - tied_seconds(each.job, messages)) for each in samples],
        scales=[each.step + each.update for each in samples],
        expected=(None, None, None),
    )
    return GroupCosts(
        _fit_tensor([each for each in samples if each.tensor > 1], plain, alone, messages),
        _fit_data([each for each in samples if each.data > 1], plain, messages),
        _fit_schedules([each for each in samples if each.pipeline > 1], plain, alone, messages),
        *update,
    )


def _any_depth(sample: EngineSample) -> tuple[object, ...]:
    return size_of(replace(sample, n_layers=0))


def _fit_tensor(
    samples: Sequence[EngineSample], plain: dict[EngineSample, Passes], alone: AloneCosts, messages: Messages
) -> TensorCosts:
    rows, extra = [], []
    for each in samples:
        base = each.micro_batches * plain[each].total(each.n_layers)
        of_block, of_ends = tensor_messages(each.job, messages)
        in_block, in_ends = tensor_message_counts(each.job)
        both = 2 * each.micro_batches
        rows.append((both * (each.n_layers * of_block + of_ends), both * (each.n_layers * in_block + in_ends), base))
        extra.append(max(0.0, each.step - base - sync_seconds(each.job, alone, messages)))
    scales = [each.step for each in samples]
    return TensorCosts(*nonnegative_fit(rows, extra, scales=scales, expected=(1.0, None, 0.0)))


def _updated(job: Job) -> float:
    """Weights that a rank's optimizer updates."""
    return rank_parameters(job) / (1 if job.zero == 0 else job.shard)


def _fit_data(samples: Sequence[EngineSample], plain: dict[EngineSample, Passes], messages: Messages) -> DataCosts:
    rows, extra = [], []
    for each in samples:
        moved = sharded(each.job, rank_parameters(each.job), messages)
        rows.append(
            (
                moved.gathers * moved.groups,
                moved.gathers * moved.weights,
                moved.reductions * moved.groups,
                moved.reductions * moved.weights,
                moved.gathers * moved.gather_wire + moved.reductions * moved.reduce_wire,
                (base := each.micro_batches * plain[each].total(each.n_layers)),
            )
        )
        extra.append(max(0.0, each.step - base))
    scales = [each.step for each in samples]
    return DataCosts(*nonnegative_fit(rows, extra, scales=scales, expected=(None, None, None, None, 1.0, 0.0)))


def _fit_schedules(
    samples: Sequence[EngineSample], plain: dict[EngineSample, Passes], alone: AloneCosts, messages: Messages
) -> dict[str, ScheduleCosts]:
    """An action's time by the smallest sample of a schedule, and the factor by the largest, in turns."""
    found: dict[str, ScheduleCosts] = {}
    for schedule in dict.fromkeys(each.schedule for each in samples):
        own = sorted((each for each in samples if each.schedule == schedule), key=lambda each: each.d_model)
        costs = ScheduleCosts(0.0, 1.0)
        for _ in range(TURNS):
            tiny, large = own[0], own[-1]
            costs = ScheduleCosts(
                _root(lambda x: _miss(tiny, plain, alone, messages, ScheduleCosts(x, costs.factor)), ACTION_S),  # noqa: B023
                costs.factor,
            )
            costs = ScheduleCosts(
                costs.action,
                _root(lambda x: _miss(large, plain, alone, messages, ScheduleCosts(costs.action, x)), MAX_SLOWDOWN),  # noqa: B023
            )
        found[schedule] = costs
    return found


def _miss(
    sample: EngineSample,
    plain: dict[EngineSample, Passes],
    alone: AloneCosts,
    messages: Messages,
    costs: ScheduleCosts,
) -> float:
    job = sample.job
    span = pipeline_span(job, plain[sample], send_seconds(job, messages), costs)
    return span + sync_seconds(job, alone, messages) - sample.step


def _root(function: Callable[[float], float], high: float) -> float:
    """Where a rising function is 0 between 0 and `high`, or the nearer end."""
    low = 0.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return (low + high) / 2
