"""The costs of one process's training step that no kernel table has, fitted to the profile's small steps.

Forward and backward of a micro-batch are kernels times a factor near 1, a time for each weight (the tables are measured
with warm caches, but a micro-batch reads all weights), a time for each block and each kernel that is started, and the
ends of the model. A step adds FSDP's gathers and reductions and the optimizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gpt.model.config import ModelConfig
from parallel.planner.machine.least_squares import nonnegative_fit
from parallel.planner.machine.profile import EngineSample
from parallel.planner.machine.work import EndWork, KernelTables, PassWork, block_work, end_work
from parallel.planner.step_time.job import Job, rank_parameters
from parallel.planner.step_time.kernels import Seconds

# Of the factor of repeated work, near 1: its samples are differences of two times, so their noise is large.
REPEATED_PRIOR = 0.2


@dataclass(frozen=True)
class PassCosts:
    """Of forward or backward: a factor of kernels, seconds for each weight, block, kernel started, pass and logit.

    `threaded`: seconds for each kernel that wakes other threads. The tables do not have it: there, threads still wait
    for the next call when it comes.
    """

    kernels: float
    weight: float
    block: float
    kernel: float
    threaded: float
    ends: float
    per_size: float  # for each logit in forward, each element of the embedding in backward


@dataclass(frozen=True)
class AloneCosts:
    """All costs of a process without peers. `recompute`: by mode, a factor of the repeated work and seconds a kernel.

    `group`, `gathered`: FSDP's seconds a step for each block or end of the model, and each weight. `tensor`, `updated`,
    `update`: the optimizer's seconds for each parameter tensor, each weight, and each step.
    """

    forward: PassCosts
    backward: PassCosts
    recompute: dict[str, tuple[float, float]]
    group: float
    gathered: float
    tensor: float
    updated: float
    update: float


def fit_alone(samples: Sequence[EngineSample], tables: KernelTables) -> AloneCosts:
    """The costs that explain the samples of one process best."""
    plain = [each for each in samples if each.recompute == "none"]
    forward, backward = _fit_passes(plain, tables)
    group, gathered = nonnegative_fit(
        [(each.n_layers + 1.0, rank_parameters(each.job)) for each in plain],
        [max(0.0, each.step - each.micro_batches * (each.forward + each.backward)) for each in plain],
        scales=[each.step for each in plain],
        expected=(None, None),
    )
    update = nonnegative_fit(
        [(each.tensors, rank_parameters(each.job), 1.0) for each in samples],
        [each.update for each in samples],
        scales=[each.step + each.update for each in samples],
        expected=(None, None, None),
    )
    return AloneCosts(forward, backward, _recompute(samples, tables, forward), group, gathered, *update)


def _fit_passes(plain: Sequence[EngineSample], tables: KernelTables) -> tuple[PassCosts, PassCosts]:
    """The costs of forward and backward, from samples without recomputation."""
    work = [(block_work(each.job, tables), end_work(each.job, tables)) for each in plain]
    scales = [each.forward + each.backward for each in plain]
    rows_up, rows_down = [], []
    for each, ((up, down), ends) in zip(plain, work, strict=True):
        started = (float(each.n_layers), each.n_layers * up.kernels, each.n_layers * up.threaded, 1.0)
        weights = each.n_layers * up.weights + ends.table
        rows_up.append((each.n_layers * up.priced + ends.products, weights, *started, ends.scores))
        rows_down.append((each.n_layers * down.priced, each.n_layers * down.weights, *started, ends.table))
    expected = (1.0, None, None, None, None, None, None)
    forward = nonnegative_fit(rows_up, [each.forward for each in plain], scales=scales, expected=expected)
    backward = nonnegative_fit(rows_down, [each.backward for each in plain], scales=scales, expected=expected)
    return PassCosts(*forward), PassCosts(*backward)


def _recompute(
    samples: Sequence[EngineSample], tables: KernelTables, forward: PassCosts
) -> dict[str, tuple[float, float]]:
    """The repeated work's factor and the seconds a kernel of each mode, beyond the same step without recomputation."""
    found: dict[str, tuple[float, float]] = {}
    plain = {size_of(each): each for each in samples if each.recompute == "none"}
    for mode in dict.fromkeys(each.recompute for each in samples if each.recompute != "none"):
        rows, extra, scales = [], [], []
        for each in (sample for sample in samples if sample.recompute == mode and size_of(sample) in plain):
            up = block_work(each.job, tables)[0]
            same = plain[size_of(each)]
            rows.append((each.n_layers * _repeated(mode, up, forward), each.n_layers * up.kernels))
            extra.append(max(0.0, each.forward + each.backward - same.forward - same.backward))
            scales.append(each.forward + each.backward)
        if rows:
            factor, kernel = nonnegative_fit(
                rows, extra, scales=scales, expected=(1.0, None), prior_weight=REPEATED_PRIOR
            )
            found[mode] = factor, kernel
    return found


def _repeated(mode: str, up: PassWork, forward: PassCosts) -> float:
    """Seconds of a block's forward that backward repeats."""
    block = block_seconds(up, forward)
    return block.total - up.last * forward.kernels if mode == "full" else block.elementwise + block.overhead


def size_of(sample: EngineSample) -> tuple[object, ...]:
    """The facts of a sample's model and micro-batch, without its layout."""
    return (
        sample.style,
        sample.d_model,
        sample.n_layers,
        sample.vocab_size,
        sample.seq_len,
        sample.micro_batch_size,
    )


def block_seconds(work: PassWork, costs: PassCosts) -> Seconds:
    """One block's seconds by kind."""
    return Seconds(
        work.products * costs.kernels,
        work.attention * costs.kernels,
        work.elementwise * costs.kernels,
        overhead=work.weights * costs.weight
        + costs.block
        + work.kernels * costs.kernel
        + work.threaded * costs.threaded,
    )


def end_seconds(work: EndWork, forward: PassCosts, backward: PassCosts) -> tuple[float, float]:
    """Seconds of both ends of the model in forward and in backward."""
    up = work.products * forward.kernels + work.scores * forward.per_size + forward.ends
    up += work.table * forward.weight
    return up, work.table * backward.per_size + backward.ends


def model_passes(job: Job, tables: KernelTables, costs: AloneCosts) -> tuple[Seconds, Seconds, Seconds, Seconds]:
    """Seconds of a micro-batch: a block's forward and backward, and those of the ends. Without messages."""
    up, down = block_work(job, tables)
    ends = end_work(job, tables)
    forward, backward = block_seconds(up, costs.forward), block_seconds(down, costs.backward)
    if job.recompute != "none":
        factor, kernel = costs.recompute.get(job.recompute, (1.0, 0.0))  # not measured: as the first time
        again = _repeated(job.recompute, up, costs.forward)
        watched = Seconds(recompute=kernel * up.kernels / 2)  # torch watches each kernel of both passes
        forward += watched
        backward += watched + Seconds(recompute=factor * again)
    products = ends.products * costs.forward.kernels
    up_s, down_s = end_seconds(ends, costs.forward, costs.backward)
    return forward, backward, Seconds(products, overhead=up_s - products), Seconds(overhead=down_s)


def end_weights(model: ModelConfig, tensor: int) -> float:
    """Parameters of the ends on one tensor rank."""
    table = model.padded_vocab_size * model.d_model / tensor
    positions = model.n_ctx * model.d_model if model.positions == "learned" else 0
    return table * (1 if model.tied else 2) + positions


def block_tensors(model: ModelConfig) -> int:
    """Parameter tensors of one block."""
    linear = 7 if model.activation == "swiglu" else 6
    norms = 2 if model.norm == "rmsnorm" or not model.bias else 4
    return linear * (2 if model.bias else 1) + norms
