"""The memory of a layout's fullest rank by formula, for a search. `parallel/planner/dry_run.py` measures it exactly.

Weights and optimizer follow ZeRO (arXiv 1910.02054). Activations are those that the model's code keeps for backward,
times the micro-batches in flight, which the schedule's own order gives.
"""

from dataclasses import dataclass
from functools import lru_cache

from parallel.planner.step_time.job import Job
from parallel.planner.step_time.schedules import order

LOGITS_BYTES = 512 * 2**20  # the loss works through a batch in chunks of this many bytes of fp32 logits


@dataclass(frozen=True)
class Footprint:
    """Bytes of the fullest rank at its peak."""

    rank: int  # of the pipeline
    weights: float  # fp32 shards
    gathered: float  # weights in the computation's type, gathered from the data ranks
    gradients: float
    optimizer: float
    activations: float  # kept for backward
    temporary: float

    @property
    def peak(self) -> float:
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, float]:
        names = ("weights", "gathered", "gradients", "optimizer", "activations", "temporary")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class InFlight:
    """What a pipeline rank holds for backward: blocks, counted once for each micro-batch, and of these the ones between
    the backward of their inputs and that of their weights; stages; and passes through the head."""

    blocks: int
    halves: int
    stages: int
    ends: int


def footprint(job: Job, *, logits_bytes: int = LOGITS_BYTES) -> Footprint:
    """Return the memory of the fullest pipeline rank."""
    ranks = range(job.pipeline) if job.pipeline <= 4 else {0, 1, job.pipeline // 2, job.pipeline - 1}
    found = [rank_footprint(job, rank, logits_bytes=logits_bytes) for rank in ranks]
    return max(found, key=lambda each: each.peak)


def rank_footprint(job: Job, rank: int, *, logits_bytes: int = LOGITS_BYTES) -> Footprint:
    """Return the memory of one pipeline rank."""
    model, ranks = job.model, job.tensor
    block = model.block_parameters / ranks
    stages = [stage for stage in range(len(job.split)) if job.rank_of(stage) == rank]
    first, last = 0 in stages, len(job.split) - 1 in stages
    table = model.padded_vocab_size * model.d_model / ranks
    ends = table * (
        first + last - (len(job.split) == 1 and model.tied)
    )  # two stages have a copy each, even on one rank
    if first and model.positions == "learned":
        ends += model.n_ctx * model.d_model
    held = sum(job.split[stage] for stage in stages) * block + ends
    width, shard = (4 if job.precision == "fp32" else 2), (1 if job.zero == 0 else job.shard)
    whole = job.zero < 2 or shard == 1
    gathered = width * (held if job.zero < 3 or shard == 1 else min(held, 2 * block + ends / 2))
    gradients = 4 * (held if whole else held / shard)
    message = 2 * job.rows * model.d_model / job.sequence_shares
    live = in_flight(job.schedule, job.pipeline, job.micro_batches, job.split, job.whole_backward)[rank]
    kept = live.blocks * kept_per_token(job) * job.rows + live.halves * _gradient_bytes(job)
    if len(stages) > 1:
        kept += live.stages * message  # torch keeps the output of each stage until its backward
    backward = (kept_per_token(job, recompute="none") - kept_per_token(job)) * job.rows
    backward += 2 * block + 8.5 * job.rows * model.ff_width / ranks
    if not whole and job.pipeline > 1 and not first:
        backward += 2 * (held - ends)  # FSDP reduces the gradients of a stage after its last block
    if last:
        kept += 3.5 * message * (live.ends if job.pipeline > 1 else 0)
    temporary = max(backward, _head_bytes(job, logits_bytes) if last else 0.0)
    if job.micro_batches == 1 or (job.schedule == "gpipe" and job.pipeline > 1):
        # No gradients exist at the peak of activations, and no activations at the end.
        gradients, kept = (0.0, kept) if kept + temporary > gradients else (gradients, 0.0)
        temporary = temporary if gradients == 0 else 0.0
    return Footprint(rank, 4 * held / shard, gathered, gradients, 8 * held / shard, kept, temporary)


def _head_bytes(job: Job, logits_bytes: int) -> float:
    """Temporary bytes of the head and its loss. A loss in several chunks also sums the head's gradient."""
    vocab = job.model.padded_vocab_size / job.tensor
    rows = min(job.rows, logits_bytes / 4 / vocab)
    summed = 4 * vocab * job.model.d_model if rows < job.rows else 0.0
    return 10 * vocab * rows + 6 * job.rows * job.model.d_model / job.sequence_shares + summed


def _gradient_bytes(job: Job) -> float:
    """Bytes of a block between the backward of its inputs and that of its weights: gradients of the products."""
    model = job.model
    wide = model.ff_width * (2 if model.activation == "swiglu" else 1)
    width = 4 if job.precision == "fp32" else 2
    return width * job.rows * (5 * model.d_model + 2 * model.kv_heads * model.d_head + wide) / job.tensor


def kept_per_token(job: Job, *, recompute: str | None = None) -> float:
    """Bytes that one block keeps for backward, for each token of a micro-batch, on one tensor rank."""
    model, ranks, shares, way = job.model, job.tensor, job.sequence_shares, recompute or job.recompute
    d, kv, ff = model.d_model, model.kv_heads * model.d_head, model.ff_width
    gated = model.activation == "swiglu"
    size = 2 if job.precision == "fp32" else 1
    statistics = 4 * model.n_heads / ranks
    if way == "full":
        return size * 2 * d / shares
    products = d + 2 * kv + d + (2 if gated else 1) * ff
    if way == "elementwise":
        return size * 2 * (2 * d / shares + products / ranks) + statistics
    hidden = 4 * d + (12 * d if model.norm == "rmsnorm" else 0)  # inputs of norms
    inside = 2 * (2 * d + 2 * kv) + (8 if gated else 4) * ff + (4 * (d + kv) if model.positions == "rope" else 0)
    return size * (hidden / shares + inside / ranks + 4 * d) + statistics + 16 / shares


@lru_cache(maxsize=4096)
def in_flight(
    schedule: str, ranks: int, micro_batches: int, split: tuple[int, ...], whole_backward: bool = False
) -> tuple[InFlight, ...]:
    """Return the most that each pipeline rank holds at once, in the order of the schedule."""
    if ranks == 1:
        return (InFlight(sum(split), 0, 1, 1),)
    per_rank = len(split) // ranks
    whole = schedule == "gpipe" or micro_batches % ranks
    count = micro_batches if whole else min(micro_batches, 3 * ranks)
    changes = {"F": (1, 0), "B": (-1, 0), "I": (0, 1), "W": (-1, -1)}
    if whole_backward:
        changes |= {"I": (-1, 0), "W": (0, 0)}
    most = []
    for actions in order(schedule, ranks, per_rank, count):
        found = [InFlight(0, 0, 0, 0)]
        blocks = halves = stages = ends = 0
        for kind, stage, _ in actions:
            sign, pending = changes[kind]
            blocks += sign * split[stage]
            halves += pending * split[stage]
            stages += sign
            ends += sign * (stage == len(split) - 1)
            found.append(InFlight(blocks, halves, stages, ends))
        most.append(max(found, key=lambda each: (each.blocks + each.halves / 2, each.ends)))
    return tuple(most)
