"""The kernels of a model's micro-batch on one rank, priced by the tables of a profile."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from parallel.planner.machine.interpolation import SpeedGrid, TimeCurve
from parallel.planner.machine.profile import RanksTables
from parallel.planner.step_time.job import Job

GRAIN = 2**15  # elements: torch splits larger elementwise kernels among threads (at::internal::GRAIN_SIZE)
# Kernels that one block starts in forward: products, attention, norms, activation, sums, copies.
KERNELS = {"layernorm": 1, "rmsnorm": 1, "gelu": 1, "swiglu": 2, "rope": 6}


@dataclass(frozen=True)
class KernelTables:
    """Seconds of kernels in one precision."""

    product: Callable[[str, float, float, float], float]  # side, m, n, k
    attention: Callable[[float, int, int], tuple[float, float]]  # heads, length, d_head: forward, backward
    elementwise: Callable[[str, float], tuple[float, float]]  # kind, elements: forward, backward


@dataclass(frozen=True)
class PassWork:
    """Seconds of kernels in forward or backward of one micro-batch, and counts of what the tables do not price.

    `elementwise`: in backward also the sums of biases' gradients, and of gradients over micro-batches. `kernels`: how
    many are started, of which `threaded` are large enough for several threads. `weights`: elements that each
    micro-batch reads again, since caches do not hold a model. `last`: of the products, seconds of a block's last one,
    which full recomputation skips, since backward does not need it.
    """

    products: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    kernels: float = 0.0
    weights: float = 0.0
    threaded: float = 0.0
    last: float = 0.0

    @property
    def priced(self) -> float:
        """Seconds of all kernels by the tables."""
        return self.products + self.attention + self.elementwise


@dataclass(frozen=True)
class EndWork:
    """The head with its loss, whose forward also computes gradients, and the embedding."""

    products: float
    scores: float  # elements of logits
    table: float  # elements of the embedding


def kernel_tables(tables: RanksTables, precision: str) -> KernelTables:
    """Lookups in the rows of one precision."""
    grids = {
        side: SpeedGrid(
            {
                (row.m, row.n, row.k): 2 * row.m * row.n * row.k / row.seconds
                for row in tables.products
                if row.side == side and row.precision == precision
            }
        )
        for side in ("forward", "input", "weight")
    }
    scores = {
        way: SpeedGrid(
            {
                (row.length, row.d_head): row.heads * row.length**2 * row.d_head / getattr(row, way)
                for row in tables.attention
                if row.precision == precision
            }
        )
        for way in ("forward", "backward")
    }
    rows = [row for row in tables.elementwise if row.precision == precision]
    curves = {
        kind: tuple(
            TimeCurve({row.elements: getattr(row, way) for row in rows if row.kind == kind})
            for way in ("forward", "backward")
        )
        for kind in {row.kind for row in rows}
    }

    def product(side: str, m: float, n: float, k: float) -> float:
        return 2 * m * n * k / grids[side](m, n, k)

    def attention(heads: float, length: int, d_head: int) -> tuple[float, float]:
        size = heads * length**2 * d_head
        return size / scores["forward"](length, d_head), size / scores["backward"](length, d_head)

    def elementwise(kind: str, elements: float) -> tuple[float, float]:
        forward, backward = curves[kind]
        return forward(elements), backward(elements)

    return KernelTables(product, attention, elementwise)


def block_work(job: Job, tables: KernelTables) -> tuple[PassWork, PassWork]:
    """Forward and backward of one block."""
    shapes = list(linear_shapes(job))
    rows = job.rows
    once = sum(tables.product("forward", rows, n, k) for n, k in shapes)
    back = sum(tables.product(side, rows, n, k) for n, k in shapes for side in ("input", "weight"))
    heads = job.micro_batch_size * job.model.n_heads / job.tensor
    scores, again = tables.attention(heads, job.seq_len, job.model.d_head)
    moved, moved_back, started = 0.0, _gradient_sums(job, shapes, tables), len(shapes) + 1.0
    for kind, elements in _elementwise(job):
        forward, backward = tables.elementwise(kind, elements)
        moved, started = moved + forward, started + KERNELS.get(kind, 1)
        moved_back += backward if kind != "add" else 0.0
    weights = job.model.block_parameters / job.tensor
    threaded = started if rows * job.model.d_model >= GRAIN else 0.0
    return (
        PassWork(once, scores, moved, started, weights, threaded, last=tables.product("forward", rows, *shapes[-1])),
        PassWork(back, again, moved_back, started, weights, threaded),
    )


def _gradient_sums(job: Job, shapes: Iterable[tuple[float, float]], tables: KernelTables) -> float:
    """Seconds in which a block's backward adds gradients up and copies them.

    Where tensors are used twice (q, k and v, residuals), their gradients are added; those of q, k, v and of attention's
    output are copied to rows. A bias's gradient is a sum over rows. Weights' gradients are added to those of earlier
    micro-batches.
    """
    whole = job.rows * job.model.d_model
    sums = sum(tables.elementwise("add", size)[0] for size in (whole, whole, *[whole / job.sequence_shares] * 2))
    copies = 4 * tables.elementwise("add", whole / job.tensor)[0]
    biases = sum(tables.elementwise("add", job.rows * n)[1] for n, _ in shapes) if job.model.bias else 0.0
    return sums + copies + biases + sum(tables.elementwise("copy", n * k)[1] for n, k in shapes)


def end_work(job: Job, tables: KernelTables) -> EndWork:
    """The head on this rank's share of the vocabulary. Its loss computes both gradients in the forward pass."""
    vocab, width = job.model.padded_vocab_size / job.tensor, job.model.d_model
    products = sum(tables.product(side, job.rows, vocab, width) for side in ("forward", "input", "weight"))
    return EndWork(products, job.rows * vocab, vocab * width)


def linear_shapes(job: Job) -> Iterable[tuple[float, float]]:
    """(n, k) of each product of a block on one tensor rank, as the model's code starts them."""
    model, ranks = job.model, job.tensor
    kv = model.kv_heads * model.d_head
    yield model.d_model / ranks, model.d_model
    yield kv / ranks, model.d_model
    yield kv / ranks, model.d_model
    yield model.d_model, model.d_model / ranks
    for _ in range(2 if model.activation == "swiglu" else 1):
        yield model.ff_width / ranks, model.d_model
    yield model.d_model, model.ff_width / ranks


def _elementwise(job: Job) -> Iterator[tuple[str, float]]:
    """The elementwise kernels of a block's forward on one rank, and their elements."""
    model, ranks = job.model, job.tensor
    whole = job.rows * model.d_model
    own = whole / job.sequence_shares
    yield model.norm, own
    yield model.norm, own
    yield model.activation, job.rows * model.ff_width / ranks
    yield "add", own
    yield "add", own
    yield "add", whole / ranks  # attention's output is copied to rows
    if model.positions == "rope":
        yield "rope", whole / ranks
        yield "rope", job.rows * model.kv_heads * model.d_head / ranks
