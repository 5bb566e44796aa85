"""The time of a block's and a head's computation on one GPU: products by shape, attention, elementwise traffic."""

from collections.abc import Iterable
from dataclasses import dataclass

from parallel.planner.hardware.tables import Cluster, Stack
from parallel.planner.step_time.collectives import all_gather_s, group
from parallel.planner.step_time.job import Job

# A product of M x K by K x N loses speed if a side is short: its time grows by the factor 1 + K0/K + N0/N + M0/M.
SHORT_K, SHORT_N, SHORT_M = 215, 213, 171
MEMORY_SHARE = 0.78  # of the memory bandwidth that elementwise kernels reach
BYTES_HIDDEN, BYTES_WIDE, BYTES_HEADS = (
    22,
    4.5,
    6,
)  # a token and layer in bf16, for each element of d_model, d_ff, q k v
UNFUSED_BYTES = 13  # for each score of unfused attention in forward
OPERATORS_SHARE = 0.35  # of a forward, which torchtitan's selective recomputation runs again


@dataclass(frozen=True)
class Seconds:
    """Seconds of one micro-batch, by kind of work."""

    products: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    tensor: float = 0.0  # exposed messages of tensor and context ranks
    recompute: float = 0.0
    overhead: float = 0.0  # on a measured machine: Python, autograd, FSDP, the start of kernels

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(*(a + b for a, b in zip(self.parts, other.parts, strict=True)))

    def times(self, factor: float) -> "Seconds":
        return Seconds(*(factor * part for part in self.parts))

    @property
    def parts(self) -> tuple[float, ...]:
        return self.products, self.attention, self.elementwise, self.tensor, self.recompute, self.overhead

    @property
    def total(self) -> float:
        return sum(self.parts)


def product_s(m: float, n: float, k: float, flops_per_s: float) -> float:
    """Seconds of a product of m x k by k x n."""
    return 2 * m * n * k / flops_per_s * (1 + SHORT_K / k + SHORT_N / n + SHORT_M / m)


def block_s(job: Job, cluster: Cluster, stack: Stack) -> tuple[Seconds, Seconds]:
    """Seconds of forward and backward of one block for one micro-batch."""
    shapes = list(_block_products(job))
    speed = cluster.gpu.product_flops_per_s(job.precision)
    rows = job.rows
    once = sum(product_s(rows, n, k, speed) for n, k in shapes)
    back = sum(product_s(rows, k, n, speed) + product_s(k, n, rows, speed) for n, k in shapes)
    scores, again = _attention_s(job, cluster, stack)
    moved = _elementwise_bytes(job) / (cluster.gpu.memory_gb_per_s * 1e9 * MEMORY_SHARE) * stack.kernels
    messages = _tensor_s(job, cluster, stack)
    last = messages * (1 if job.sequence_parallel else 2) / stack.tensor_messages  # an all-reduce counts as two
    skipped = 0.0 if stack.whole_recompute else product_s(rows, *shapes[-1], speed) + last
    forward = Seconds(once, scores, moved, messages)
    repeated = {
        "none": 0.0,
        "attention": scores,
        "elementwise": moved + (messages / 2 if job.sequence_parallel else 0.0),
        "operators": OPERATORS_SHARE * forward.total,
        "full": forward.total - skipped,
    }[job.recompute]
    summed = accumulation_s(job.model.block_parameters / job.tensor, job, cluster, stack)
    return forward, Seconds(back, again, 2 * moved + summed, messages, repeated)


def accumulation_s(weights: float, job: Job, cluster: Cluster, stack: Stack) -> float:
    """Seconds in which a micro-batch adds the gradients of `weights` to the sum of the step."""
    if job.micro_batches == 1:
        return 0.0
    held = weights / (job.shard if job.zero >= 2 else 1)
    return stack.accumulate_bytes * held / (cluster.gpu.memory_gb_per_s * 1e9 * MEMORY_SHARE)


def head_s(job: Job, cluster: Cluster, stack: Stack) -> tuple[Seconds, Seconds]:
    """Seconds of forward and backward of the head with its loss. Its products stay in bf16."""
    precision = "bf16" if job.precision == "fp8" else job.precision
    speed = cluster.gpu.product_flops_per_s(precision)
    rows, width, vocab = job.rows, job.model.d_model, job.model.padded_vocab_size / job.tensor
    own = job.model.padded_vocab_size if stack.gathered_logits else vocab  # columns that the loss of a rank reads
    moved = 10 * rows * own / (cluster.gpu.memory_gb_per_s * 1e9 * MEMORY_SHARE)
    whole = 2 * rows * job.model.padded_vocab_size if stack.gathered_logits else 0.0
    gathered = all_gather_s(whole, group(cluster, job.tensor, stride=1), cluster)
    back = product_s(rows, width, vocab, speed) + product_s(width, vocab, rows, speed)
    return (
        Seconds(product_s(rows, vocab, width, speed), 0.0, moved / 2, gathered),
        Seconds(back, 0.0, moved / 2 + accumulation_s(width * vocab, job, cluster, stack)),
    )


def _block_products(job: Job) -> Iterable[tuple[float, float]]:
    """(N, K) of each product of a block on one tensor rank."""
    model, ranks = job.model, job.tensor
    heads = model.d_model + 2 * model.kv_heads * model.d_head
    wide = model.ff_width * (2 if model.activation == "swiglu" else 1)
    yield heads / ranks, model.d_model
    yield model.d_model, model.d_model / ranks
    yield wide / ranks, model.d_model
    yield model.d_model, model.ff_width / ranks


def _attention_s(job: Job, cluster: Cluster, stack: Stack) -> tuple[float, float]:
    """Seconds of attention's forward and backward. Fused kernels skip the masked half."""
    gpu, rows, model = cluster.gpu, job.rows, job.model
    length = min(job.seq_len, model.n_ctx)  # longer rows hold several texts, which attend to themselves alone
    flops = 4 * rows * length * model.d_model / job.tensor
    if stack.attention == "fused":
        precision = "fp32" if job.precision == "fp32" else "bf16"
        speed = gpu.peak * gpu.attention * stack.attention_speed * gpu.power * 1e12
        speed /= 8 if precision == "fp32" else 1
        return flops / 2 / speed, 2.5 * flops / 2 / speed
    speed = gpu.product_flops_per_s("bf16")
    scores = rows * length * model.n_heads / job.tensor
    moved = UNFUSED_BYTES * scores / (gpu.memory_gb_per_s * 1e9 * MEMORY_SHARE)
    return flops / speed + moved, 2 * flops / speed + 2 * moved


def _elementwise_bytes(job: Job) -> float:
    """Bytes that the elementwise kernels of a block's forward read and write on one rank."""
    model, ranks = job.model, job.tensor
    heads = model.d_model + 2 * model.kv_heads * model.d_head
    wide = model.ff_width * (2 if model.activation == "swiglu" else 1)
    hidden = BYTES_HIDDEN * model.d_model / job.sequence_shares
    scale = 2 if job.precision == "fp32" else 1
    return scale * job.rows * (hidden + BYTES_WIDE * wide / ranks + BYTES_HEADS * heads / ranks)


def _tensor_s(job: Job, cluster: Cluster, stack: Stack) -> float:
    """Exposed seconds of a block's messages between tensor and context ranks, in one direction."""
    nbytes = job.rows * job.model.d_model * (4 if job.precision == "fp32" else 2)
    each = all_gather_s(nbytes, group(cluster, job.tensor, stride=1), cluster)
    overlaps = (stack.overlap_tensor or job.overlap_tensor) and job.sequence_parallel
    share = stack.tensor_overlapped if overlaps else stack.tensor
    kv = 2 * job.seq_len * job.micro_batch_size * job.model.kv_heads * job.model.d_head / job.tensor * 2
    ring = all_gather_s(kv, group(cluster, job.context, stride=job.tensor), cluster)
    return stack.tensor_messages * each * share + ring * share
