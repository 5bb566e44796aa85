"""The memory of published runs by formula: weights and optimizer, activations, allocator's peak, in bytes.

The Megatron family keeps what arXiv 2205.05198 counts (section 4), here also for grouped queries, other widths and
fused attention. With sequence parallelism it shards every activation over tensor ranks. Programs on FSDP keep what this
one does.
"""

from dataclasses import dataclass

from gpt.errors import ConfigError
from parallel.planner.choice.footprint import footprint, in_flight
from parallel.planner.hardware.tables import Hardware, Stack
from parallel.planner.published.rows import jobs_of, source_of, stack_of
from parallel.planner.step_time.job import Job, rank_parameters

MEMORY_UNITS = {"": 1, "bytes": 1, "b": 1, "mb": 1e6, "gb": 1e9, "mib": 2**20, "gib": 2**30}
LOGITS_BYTES = 6  # of a logit: bf16, and fp32 whose gradient takes its place


@dataclass(frozen=True)
class PublishedMemory:
    """A measured size and its prediction, in bytes."""

    id: str
    source: str
    metric: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def published_memory(rows: list[dict[str, str]], hardware: Hardware) -> tuple[list[PublishedMemory], list[str]]:
    """The rows that state a size, and one line for each of them that cannot be predicted."""
    found, left_out = [], []
    for row in rows:
        if "mem" not in row["metric"]:
            continue
        try:
            unit = MEMORY_UNITS.get((row.get("unit") or "").lower())
            if unit is None:
                raise ConfigError(f"unit {row.get('unit')} is unknown. Use bytes, GB or GiB")
            stack = stack_of(row, hardware)
            job, measured = jobs_of(row, stack)[0], float(row["value"]) * unit
            if not measured > 0:
                raise ConfigError(f"value {row['value']} is invalid: must be a number above 0")
            predicted = predicted_bytes(row["metric"], job, stack)
            found.append(PublishedMemory(row["id"], source_of(row), row["metric"], measured, predicted))
        except (ConfigError, ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
            left_out.append(f"row {row['id']}: {error}")
    return found, left_out


def predicted_bytes(metric: str, job: Job, stack: Stack) -> float:
    """The size that a metric names: peak, activations, else weights with gradients and optimizer.

    ConfigError: the program's memory is not modelled.
    """
    if not stack.whole_recompute:
        if job.recompute == "operators":
            raise ConfigError("the memory of recomputation by operator is not modelled")
        parts = footprint(job).parts
        held = sum(parts[name] for name in ("weights", "gathered", "gradients", "optimizer"))
        kept, peak = parts["activations"], sum(parts.values())
    else:
        shard = 1 if job.zero == 0 else job.shard * job.context
        positions = job.model.n_ctx * job.model.d_model if job.model.positions == "learned" else 0
        held = (rank_parameters(job) + positions) * (6 + 12 / shard)  # bf16 or fp16, fp32 gradients; Adam
        live = in_flight(job.schedule, job.pipeline, job.micro_batches, job.split)
        blocks = [each.blocks * kept_by_megatron(job, stack) * job.rows for each in live]
        logits = LOGITS_BYTES * job.rows * job.model.padded_vocab_size / job.tensor
        kept, peak = blocks[0], held + max([*blocks[:-1], blocks[-1] + logits])
    if "max" in metric or "peak" in metric:
        return peak
    return kept if "activation" in metric else held


def kept_by_megatron(job: Job, stack: Stack) -> float:
    """Bytes that a block keeps for backward, for each token of a micro-batch, on one tensor rank."""
    model, ranks = job.model, job.tensor
    d, kv, wide = model.d_model, model.kv_heads * model.d_head, model.ff_width
    if job.recompute == "full":
        return 2 * d / job.sequence_shares
    unfused = stack.attention == "unfused"  # with the masks of dropout, a byte each
    hidden = 8 * d + (2 * d if unfused else 0)  # inputs and outputs of both norms
    split = 2 * (d + 2 * kv) + 2 * d + 2 * wide * (3 if model.activation == "swiglu" else 2)
    scores = 5 * model.n_heads * job.seq_len if unfused and job.recompute != "attention" else 4 * model.n_heads
    return hidden / job.sequence_shares + (split + scores) / ranks
