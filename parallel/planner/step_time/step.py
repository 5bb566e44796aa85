"""Predict the time of a training step on hardware that is not there."""

import math
from dataclasses import dataclass

from parallel.planner.hardware.tables import Cluster, Stack
from parallel.planner.machine.measured_step import MeasuredMachine, measured_parts
from parallel.planner.step_time.collectives import all_gather_s, group, send_s
from parallel.planner.step_time.job import Job, rank_parameters
from parallel.planner.step_time.kernels import Seconds, block_s, head_s
from parallel.planner.step_time.schedules import StageTimes, step_makespan

INTERVAL = 1.645  # standard deviations: 90% of a normal distribution


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, and of its parts on the busiest pipeline rank; the parts add up to `seconds`.

    `low` and `high` bound 90% of the runs that the stack's spread predicts.
    """

    seconds: float
    low: float
    high: float
    products: float
    attention: float
    elementwise: float
    recompute: float
    tensor: float
    pipeline: float
    bubble: float
    data: float
    optimizer: float
    overhead: float = 0.0  # only on a measured machine

    def tokens_per_s(self, job: Job) -> float:
        return job.tokens / self.seconds

    def mfu(self, job: Job, cluster: Cluster) -> float:
        """Model FLOPs a second over the bf16 peak of all GPUs."""
        return job.flops / self.seconds / (cluster.gpu.peak * 1e12 * job.world_size)

    @property
    def parts(self) -> dict[str, float]:
        names = ("products", "attention", "elementwise", "recompute", "tensor", "pipeline", "bubble", "data")
        return {name: getattr(self, name) for name in (*names, "optimizer", "overhead")}


def step_time(job: Job, cluster: Cluster, stack: Stack, *, simulate: bool = True) -> StepTime:
    """Predict one step of a job. Without `simulate`, there are no bubbles: a quick lower bound.

    On a cluster with a measured machine, the times come from its profile.
    """
    if cluster.machine is not None:
        return _measured(job, cluster.machine, stack)
    forward, backward = _stages(job, cluster, stack)
    message = _message_s(job, cluster, stack)
    waits = message * stack.pipeline if job.pipeline > 1 else 0.0
    gathers_f, gathers_b = _exposed_gathers(job, cluster, stack, (forward, backward))
    times_f = [f.total * stack.overhead + g + waits for f, g in zip(forward, gathers_f, strict=True)]
    times_b = [b.total * stack.overhead + g + waits for b, g in zip(backward, gathers_b, strict=True)]
    if job.pipeline == 1:
        span = job.micro_batches * (sum(times_f) + sum(times_b))
    elif simulate:
        split = forward[0] + backward[0]
        # attention has no weights: its backward is of inputs
        share = split.attention / split.total if split.total else 0.0  # a first stage may have no block
        inputs = 1.0 if job.whole_backward else 0.5 + 0.15 * share
        times = StageTimes(times_f, times_b, inputs, message)
        span = step_makespan(job.schedule, job.pipeline, job.micro_batches, times)
    else:
        span = 0.0
    own = _stages_of_busiest(job, [f + b for f, b in zip(times_f, times_b, strict=True)])
    busy = sum((forward[i] + backward[i] for i in own), Seconds()).times(job.micro_batches * stack.overhead)
    gathers = job.micro_batches * sum(gathers_f[i] + gathers_b[i] for i in own)
    pipeline = job.micro_batches * 2 * waits * len(own)
    data = _data_s(job, cluster, stack)
    optimizer = _optimizer_s(job, cluster, stack)
    span = max(span, busy.total + gathers + pipeline)
    parts = {
        **{name: getattr(busy, name) for name in ("products", "attention", "elementwise", "recompute", "tensor")},
        "pipeline": pipeline,
        "bubble": max(0.0, span - busy.total - gathers - pipeline),
        "data": data + gathers,
        "optimizer": optimizer,
    }
    seconds, factor = (span + data + optimizer) * stack.scale, math.exp(INTERVAL * stack.spread)
    scaled = {name: part * stack.scale for name, part in parts.items()}
    return StepTime(seconds, seconds / factor, seconds * factor, **scaled)


def _measured(job: Job, machine: MeasuredMachine, stack: Stack) -> StepTime:
    """The step by a machine's profile. Of the stack only its scale and spread count."""
    found, factor = measured_parts(job, machine), math.exp(INTERVAL * stack.spread)
    kinds = ("products", "attention", "elementwise", "recompute", "tensor", "overhead")
    parts = {
        **{name: getattr(found.busy, name) for name in kinds},
        "pipeline": found.pipeline,
        "bubble": found.bubble,
        "data": found.data,
        "optimizer": found.optimizer,
    }
    seconds = found.total * stack.scale
    return StepTime(
        seconds, seconds / factor, seconds * factor, **{name: part * stack.scale for name, part in parts.items()}
    )


def _stages(job: Job, cluster: Cluster, stack: Stack) -> tuple[list[Seconds], list[Seconds]]:
    forward, backward = block_s(job, cluster, stack)
    head_forward, head_backward = head_s(job, cluster, stack)
    ups, downs = [forward.times(n) for n in job.split], [backward.times(n) for n in job.split]
    ups[-1] += head_forward
    downs[-1] += head_backward
    return ups, downs


def _stages_of_busiest(job: Job, times: list[float]) -> list[int]:
    own: dict[int, list[int]] = {}
    for stage in range(len(job.split)):
        own.setdefault(job.rank_of(stage), []).append(stage)
    return max(own.values(), key=lambda stages: sum(times[i] for i in stages))


def _message_s(job: Job, cluster: Cluster, stack: Stack) -> float:
    if job.pipeline == 1:
        return 0.0
    shares = job.tensor if stack.scatters_sends else job.sequence_shares
    nbytes = job.rows * job.model.d_model * (4 if job.precision == "fp32" else 2) / shares
    return send_s(nbytes, cluster, stride=job.tensor * job.context * job.data)


def _data_groups(job: Job) -> tuple[int, int]:
    """Data ranks of a shard, and replicas of it. Context ranks share weights as data ranks do."""
    ranks = job.data * job.context
    shard = 1 if job.zero == 0 else min(job.shard * job.context, ranks)
    return shard, ranks // shard


def _data_s(job: Job, cluster: Cluster, stack: Stack) -> float:
    """Exposed seconds a step for what moves once a step: gradients and weights up to ZeRO 1, weights with ZeRO 2."""
    shard, replicas = _data_groups(job)
    weights = rank_parameters(job)
    among = group(cluster, shard, stride=job.tensor)
    copies = group(cluster, replicas, stride=job.tensor * shard)
    reduced = weights * stack.gradient_bytes
    across = 2 * all_gather_s(reduced / shard, copies, cluster)
    once = all_gather_s(reduced, among, cluster) * (2 if stack.all_reduces else 1) if job.zero < 2 else 0.0
    if job.zero < 3:
        once += all_gather_s(weights * 2, among, cluster)
    return (once + across) * stack.data + _tied_s(job, cluster, stack)


def _tied_s(job: Job, cluster: Cluster, stack: Stack) -> float:
    """Seconds in which the first and the last stage sum the gradients of their tied embedding. Nothing overlaps it."""
    if not job.model.tied or job.rank_of(len(job.split) - 1) == 0:
        return 0.0
    shared = job.model.padded_vocab_size * job.model.d_model / job.tensor * stack.gradient_bytes
    pair = group(cluster, 2, stride=job.tensor * job.context * job.data * (job.pipeline - 1))
    return 2 * all_gather_s(shared, pair, cluster)


def _exposed_gathers(
    job: Job, cluster: Cluster, stack: Stack, times: tuple[list[Seconds], list[Seconds]]
) -> tuple[list[float], list[float]]:
    """Exposed seconds of a micro-batch for the messages of ZeRO 2 and 3, by stage, in forward and in backward.

    They run beside each block's computation: the first is exposed, and the part of each that takes longer than
    its block. At least the stack's share of all is exposed, as for messages once a step.
    """
    shard, _ = _data_groups(job)
    if job.zero < 2 or shard == 1:
        return [0.0] * len(job.split), [0.0] * len(job.split)
    among = group(cluster, shard, stride=job.tensor)
    block = job.model.block_parameters / job.tensor
    gather = all_gather_s(block * 2, among, cluster) if job.zero == 3 else 0.0
    reduce = all_gather_s(block * 4, among, cluster)
    ups, downs = [], []
    for blocks, forward, backward in zip(job.split, *times, strict=True):
        n = max(blocks, 1)
        up = gather + n * max(0.0, gather - forward.total / n)
        down = reduce + n * max(0.0, gather + reduce - backward.total / n)
        ups.append(max(up, n * gather * stack.data))
        downs.append(max(down, n * (gather + reduce) * stack.data))
    return ups, downs


def _optimizer_s(job: Job, cluster: Cluster, stack: Stack) -> float:
    shard, _ = _data_groups(job)
    return stack.optimizer_bytes * rank_parameters(job) / shard / (cluster.gpu.memory_gb_per_s * 1e9)
