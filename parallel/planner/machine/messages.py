"""Seconds of messages between ranks by a profile's tables."""

from collections.abc import Mapping
from dataclasses import dataclass

from gpt.errors import ConfigError
from parallel.planner.machine.costs import end_weights
from parallel.planner.machine.interpolation import TimeCurve
from parallel.planner.machine.profile import RanksTables
from parallel.planner.step_time.job import Job


@dataclass(frozen=True)
class Messages:
    """Seconds by kind and number of ranks."""

    curves: Mapping[tuple[str, int], TimeCurve]

    def __call__(self, kind: str, ranks: int, nbytes: float) -> float:
        """Seconds of one collective; 0 for one rank. ConfigError: no group of this size was measured."""
        if ranks == 1 or nbytes <= 0:
            return 0.0
        if (kind, ranks) not in self.curves:
            known = sorted({number for _, number in self.curves})
            raise ConfigError(
                f"the profile has no messages among {ranks} ranks, only among {known}. Measure them: triaxial doctor "
                f"--measure --ranks {ranks}"
            )
        return self.curves[kind, ranks](nbytes)

    def to_neighbour(self, nbytes: float) -> float:
        """Seconds of a message between two ranks, the same in groups of all sizes."""
        return self("send", next(ranks for kind, ranks in self.curves if kind == "send"), nbytes)


def message_curves(tables: RanksTables) -> Messages:
    """The tables as curves."""
    points: dict[tuple[str, int], dict[float, float]] = {}
    for row in tables.collectives:
        points.setdefault((row.kind, row.ranks), {})[row.bytes] = row.seconds
    return Messages({key: TimeCurve(found) for key, found in points.items()})


def width(job: Job) -> int:
    """Bytes of an element in the computation's type."""
    return 4 if job.precision == "fp32" else 2


def tensor_messages(job: Job, messages: Messages) -> tuple[float, float]:
    """Seconds of one direction of a micro-batch: of a block, and of both ends with the loss's sums."""
    nbytes = job.rows * job.model.d_model * width(job)
    if job.sequence_parallel:
        pair = messages("all_gather", job.tensor, nbytes) + messages("reduce_scatter", job.tensor, nbytes)
    else:
        pair = messages("all_reduce", job.tensor, nbytes)
    sums = 2 * messages("all_reduce", job.tensor, 8 * job.rows)
    return 2 * pair, pair + sums / 2


def tensor_message_counts(job: Job) -> tuple[int, int]:
    """How many messages `tensor_messages` prices in one direction: of a block, and of both ends with the loss."""
    pair = 2 if job.sequence_parallel else 1
    return 2 * pair, pair + 1


@dataclass(frozen=True)
class Sharded:
    """FSDP's gathers and reductions in a step: how often, and the seconds of one of each on the wire.

    `groups`: blocks and ends of the fullest rank, each gathered alone. `weights`: parameters of this rank.
    """

    gathers: int
    reductions: int
    groups: int
    weights: float
    gather_wire: float
    reduce_wire: float


def sharded(job: Job, weights: float, messages: Messages) -> Sharded:
    """The gathers and reductions of a step, by ZeRO stage."""
    blocks = job.model.n_layers / job.pipeline
    shard = 1 if job.zero == 0 else job.shard
    copies = job.data // shard
    block = job.model.block_parameters / job.tensor
    ends = max(weights - blocks * block, 0.0) or end_weights(job.model, job.tensor)
    gather = reduce = 0.0
    for count, size in ((blocks, block), (1.0, ends)):
        gather += count * messages("all_gather", shard, size * width(job))
        reduce += count * messages("reduce_scatter", shard, 4 * size)
        reduce += count * messages("all_reduce", copies, 4 * size / shard)
    stages = len(job.split) // job.pipeline
    return Sharded(
        gathers=2 * job.micro_batches if job.zero == 3 and job.data > 1 else 1,
        reductions=job.micro_batches if job.zero >= 2 and job.data > 1 else 1,
        groups=round(blocks) + stages,
        weights=weights,
        gather_wire=gather,
        reduce_wire=reduce,
    )
