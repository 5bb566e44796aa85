"""A machine whose kernels have one speed and whose costs are round numbers: its profile by formulas written here."""

import itertools
from dataclasses import replace

from parallel.layout.config import SEVERAL_STAGES
from parallel.planner.machine.profile import (
    AttentionTime,
    CollectiveTime,
    ElementwiseTime,
    EngineSample,
    MachineIdentity,
    MachineProfile,
    ProductTime,
    RanksTables,
)

SPEED, SCORE_S, ELEMENT_S = 1e11, 2e-11, 1e-9  # FLOP/s; seconds of a score and channel, of an element
KERNEL_S, PASS_S, LOGIT_S, WEIGHT_S, TABLE_S = 2e-5, 1e-3, 3e-9, 4e-10, 5e-10
ADD_UP_S = 3e-10  # of an element whose gradient is added to an earlier one
READ_S, WAKE_S, GRAIN = 2e-10, 1e-5, 2**15  # of a weight in forward; of a kernel whose work threads share
GROUP_S, GATHERED_S, TENSOR_S, UPDATED_S, UPDATE_S = 1e-4, 1e-9, 1e-5, 2e-9, 5e-4
KERNELS, SIDES = 13, ("forward", "input", "weight")  # of a block in forward
LATENCY_S, BYTE_S = 1e-4, 1e-9  # of every message
WAIT_S, ACTION_S, SLOWDOWN = 3e-5, 2e-4, 1.1  # of tensor ranks; of pipeline schedules
SIZES = (
    (64, 2, 512, 32, 1),
    (64, 6, 512, 32, 1),
    (128, 4, 4096, 256, 2),
    (256, 4, 2048, 128, 2),
    (512, 2, 8192, 256, 1),
    (256, 2, 2048, 128, 8),
    (512, 1, 2048, 256, 4),
)


def passes(d: int, layers: int, vocab: int, length: int, size: int) -> tuple[float, float]:
    """Seconds of forward and backward of a micro-batch of GPT-3's decoder."""
    rows, block = length * size, 12 * d * d + 13 * d
    scores = size * length * length * d * SCORE_S
    elements = 9 * rows * d  # two norms, two residual sums, the activation's 4 d, a copy
    gradients = elements - 3 * rows * d + (4 + 4 + 9) * rows * d  # four sums, four copies, the biases' 9 d
    forward = layers * (24 * rows * d * d / SPEED + scores + elements * ELEMENT_S + KERNELS * KERNEL_S)
    forward += 6 * rows * vocab * d / SPEED + PASS_S + LOGIT_S * rows * vocab
    backward = layers * (48 * rows * d * d / SPEED + 2 * scores + gradients * ELEMENT_S + KERNELS * KERNEL_S)
    backward += layers * 12 * d * d * ADD_UP_S
    forward += (layers * block + vocab * d) * READ_S + layers * waking(d, rows)
    return forward, backward + layers * waking(d, rows) + layers * block * WEIGHT_S + PASS_S + TABLE_S * vocab * d


def waking(d: int, rows: int) -> float:
    """Seconds of a block's kernels in one direction to wake other threads."""
    return KERNELS * WAKE_S if rows * d >= GRAIN else 0.0


def weights(d: int, layers: int, vocab: int) -> int:
    return layers * (12 * d * d + 13 * d) + vocab * d


def update(d: int, layers: int, vocab: int, shard: int = 1) -> float:
    return TENSOR_S * (16 * layers + 4) + UPDATED_S * weights(d, layers, vocab) / shard + UPDATE_S


def message(nbytes: float) -> float:
    return LATENCY_S + BYTE_S * nbytes


def alone_sample(d: int, layers: int, vocab: int, length: int, size: int) -> EngineSample:
    forward, backward = passes(d, layers, vocab, length, size)
    once = GROUP_S * (layers + 1) + GATHERED_S * weights(d, layers, vocab)
    names = ("d_model", "n_layers", "vocab_size", "seq_len", "micro_batch_size")
    facts = dict(zip(names, (d, layers, vocab, length, size), strict=True))
    return EngineSample(
        precision="fp32",
        style="gpt3",
        n_heads=2,
        micro_batches=2,
        split=(layers,),
        tensor=1,
        pipeline=1,
        data=1,
        zero=1,
        schedule="1f1b",
        recompute="none",
        tensors=16 * layers + 4,
        forward=forward,
        backward=backward,
        step=2 * (forward + backward) + once,
        update=update(d, layers, vocab),
        **facts,
    )


def group_samples() -> list[EngineSample]:
    """Of two ranks: tensor 2, ZeRO 0 to 3, and every schedule of a pipeline."""
    found = []
    for size in SIZES:
        d, layers, vocab, length, rows = size
        alone, tokens = alone_sample(*size), length * rows
        half = replace(alone, tensor=2, forward=0.0, backward=0.0)
        sharded = sum(passes(*size)) / 2 + PASS_S + layers * (KERNELS * KERNEL_S + waking(d, tokens))  # not halved
        messages = 8 * (layers + 0.5) * message(4 * tokens * d) + 2 * message(8 * tokens)
        once = GROUP_S * (layers + 1) + GATHERED_S * weights(d, layers, vocab) / 2
        waits = (8 * layers + 6) * WAIT_S
        found.append(replace(half, step=2 * (sharded + messages + waits) + once, update=update(*size[:3], 2)))
        found += [data_sample(alone, zero) for zero in (0, 1, 2, 3)]
    return [*found, *pipeline_samples()]


def data_sample(alone: EngineSample, zero: int) -> EngineSample:
    d, layers, vocab = alone.d_model, alone.n_layers, alone.vocab_size
    held, groups = weights(d, layers, vocab), layers + 1
    parts = [12 * d * d + 13 * d] * layers + [vocab * d]
    gathers, reductions = (4 if zero == 3 else 1), (2 if zero >= 2 else 1)
    gather = GROUP_S * groups + GATHERED_S * held + (sum(message(4 * part) for part in parts) if zero else 0.0)
    reduce = 2 * GROUP_S * groups + 2 * GATHERED_S * held + sum(message(4 * part) for part in parts)
    step = 2 * (alone.forward + alone.backward) + gathers * gather + reductions * reduce
    return replace(
        alone,
        data=2,
        zero=zero,
        forward=0.0,
        backward=0.0,
        step=step,
        update=update(d, layers, vocab, 1 if zero == 0 else 2),
    )


def pipeline_samples() -> list[EngineSample]:
    """Every schedule on 2 ranks with 4 micro-batches, in 1.5 times the time of one process and 10 ms."""
    found = []
    for size, several in ((SIZES[1], (2, 2, 1, 1)), (SIZES[3], (1, 1, 1, 1))):
        alone = alone_sample(*size)
        pipelined = replace(alone, pipeline=2, micro_batches=4, forward=0.0, backward=0.0, step=1.5 * alone.step + 0.01)
        found.append(replace(pipelined, split=(alone.n_layers // 2,) * 2))
        found += [replace(pipelined, schedule=schedule, split=several) for schedule in SEVERAL_STAGES]
    return found


def made_profile(machine: MachineIdentity, threads: tuple[int, int] = (2, 1)) -> MachineProfile:
    """One and two ranks, all with the same speeds, in fp32."""
    grid = (64, 256, 1024)
    products = tuple(
        ProductTime("fp32", side, m, n, k, 2 * m * n * k / SPEED)
        for side, m, n, k in itertools.product(SIDES, grid, grid, grid)
    )
    attention = tuple(
        AttentionTime("fp32", 8, length, e, 8 * length**2 * e * SCORE_S, 16 * length**2 * e * SCORE_S)
        for length, e in itertools.product((32, 1024), (32, 128))
    )
    kinds = ("layernorm", "rmsnorm", "gelu", "swiglu", "rope", "copy", "add")
    elementwise = tuple(
        ElementwiseTime("fp32", kind, count, count * ELEMENT_S, count * (ADD_UP_S if kind == "copy" else ELEMENT_S))
        for kind, count in itertools.product(kinds, (2**4, 2**24))
    )
    sizes = [2**i for i in range(4, 29)]
    collectives = tuple(
        CollectiveTime(kind, 2, nbytes, message(nbytes))
        for kind, nbytes in itertools.product(("all_gather", "reduce_scatter", "all_reduce", "send"), sizes)
    )
    alone = tuple(alone_sample(*size) for size in SIZES)
    one = RanksTables(1, threads[0], 0.02, 0.0, products, attention, elementwise, (), alone)
    two = RanksTables(
        2, threads[1], 0.02, 0.0, products, attention, elementwise, collectives, (*alone, *group_samples())
    )
    return MachineProfile(machine, "2026-11-30T12:00:00+00:00", 60.0, 16 * 2**30, (one, two))
