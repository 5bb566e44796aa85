"""Cases for the kernels of a transformer: products by shape, attention by length, elementwise work by size."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gpt.model.attention import attend, kernel_order
from gpt.model.rope import rotate
from parallel.planner.machine.profile import AttentionTime, ElementwiseTime, ProductTime
from parallel.planner.measuring.rounds import TimedCase

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
ROWS = {"cpu": (64, 256, 1024, 4096), "cuda": (512, 2048, 8192, 32768)}
WIDTHS = {"cpu": (64, 256, 1024, 4096), "cuda": (256, 1024, 4096, 16384)}
MAX_FLOPS = {"cpu": 2.2e9, "cuda": 2e13}  # of a product; larger ones run at the speed of the largest
LENGTHS = {"cpu": (64, 256, 1024), "cuda": (256, 1024, 4096, 16384)}
HEADS = {"cpu": 8, "cuda": 32}
D_HEADS = (32, 64, 128)
ELEMENTS = {"cpu": (2**12, 2**15, 2**18, 2**21), "cuda": (2**16, 2**20, 2**24, 2**27)}
COLD_ELEMENTS = {"cpu": 2**24, "cuda": 2**27}  # of fp32: more than caches hold, as the gradients of a model are
WIDTH = 512  # of the rows that a norm works on
MAX_SCORES = {"cpu": 2**24, "cuda": 2**36}  # heads x length x length


def product_cases(device: torch.device, precision: str) -> Iterator[TimedCase]:
    """A linear layer's product and those of its two gradients, on a grid of shapes."""
    kind, dtype = device.type, DTYPES[precision]
    for m, n, k in itertools.product(ROWS[kind], WIDTHS[kind], WIDTHS[kind]):
        if 2 * m * n * k > MAX_FLOPS[kind]:
            continue
        x, w, g = (torch.randn(shape, device=device).to(dtype) for shape in ((m, k), (n, k), (m, n)))
        bias = torch.zeros(n, device=device, dtype=dtype)
        sides: dict[str, Callable[[], object]] = {
            "forward": partial(functional.linear, x, w, bias),
            "input": partial(torch.mm, g, w),
            "weight": partial(torch.mm, g.T, x),
        }
        for side, run in sides.items():
            yield TimedCase((run,), partial(ProductTime, precision, side, m, n, k))


def attention_cases(device: torch.device, precision: str) -> Iterator[TimedCase]:
    """Causal attention as the model calls it, forward and backward."""
    kind, heads = device.type, HEADS[device.type]
    for length, d_head in itertools.product(LENGTHS[kind], D_HEADS):
        if heads * length * length > MAX_SCORES[kind]:
            continue
        make = partial(torch.randn, 1, length, heads, d_head, device=device)
        q, k, v, grad = (make().to(DTYPES[precision]).transpose(1, 2) for _ in range(4))
        inputs = tuple(x.detach().requires_grad_() for x in (q, k, v))
        with kernel_order(device):
            out = attend(*inputs)

        def forward(inputs: tuple[Tensor, ...] = inputs) -> object:
            with kernel_order(device):
                return attend(*inputs)

        backward = partial(torch.autograd.grad, out, inputs, grad, retain_graph=True)
        yield TimedCase((forward, backward), partial(AttentionTime, precision, heads, length, d_head))


def elementwise_cases(device: torch.device, precision: str) -> Iterator[TimedCase]:
    """Kernels that move memory, in forward and backward, by the number of elements.

    "copy" rounds an fp32 tensor to the computation's type, and adds one of that type to another, as a gradient to its
    sum. Each call takes another sum: a model's are in no cache when a micro-batch comes back to them.
    """
    dtype = DTYPES[precision]
    sums = torch.zeros(COLD_ELEMENTS[device.type], device=device)
    for elements in ELEMENTS[device.type]:
        rows = elements // WIDTH
        make = partial(torch.randn, rows, WIDTH, device=device)
        x, y, grad = (make().to(dtype) for _ in range(3))
        wide = make()
        for name, function, inputs in _functions(x, y, device):
            leaves = tuple(each.detach().requires_grad_() for each in inputs)
            out = function(*leaves)
            back = partial(torch.autograd.grad, out, leaves, grad.view_as(out), retain_graph=True)
            row = partial(ElementwiseTime, precision, name, elements)
            yield TimedCase((partial(function, *leaves), back), row)
        copy, add_up = (
            partial(wide.to, dtype, copy=True),
            partial(_add_to_next, itertools.cycle(torch.split(sums, elements)), x),
        )
        yield TimedCase((copy, add_up), partial(ElementwiseTime, precision, "copy", elements))
        yield TimedCase(
            (partial(torch.add, x, y), partial(torch.sum, x, 0)), partial(ElementwiseTime, precision, "add", elements)
        )


def _add_to_next(sums: Iterator[Tensor], x: Tensor) -> Tensor:
    return next(sums).view_as(x).add_(x)


def _functions(
    x: Tensor, y: Tensor, device: torch.device
) -> Iterator[tuple[str, Callable[..., Any], tuple[Tensor, ...]]]:
    norms: dict[str, nn.Module] = {"layernorm": nn.LayerNorm(WIDTH), "rmsnorm": nn.RMSNorm(WIDTH)}
    for name, norm in norms.items():
        yield name, norm.to(device=device, dtype=x.dtype), (x,)
    yield "gelu", partial(functional.gelu, approximate="tanh"), (x,)
    yield "swiglu", _swiglu, (x, y)
    heads = x.view(1, x.size(0), WIDTH // 64, 64).transpose(1, 2)
    angles = torch.randn(1, x.size(0), 32, device=device)
    yield "rope", partial(_rotated, cos=angles.cos(), sin=angles.sin()), (heads,)


def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return functional.silu(gate) * up


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return rotate(x, cos, sin)
