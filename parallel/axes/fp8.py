"""Matrix products of blocks in fp8, with one scale for each tensor.

Activations and weights are rounded to e4m3, gradients to e5m2; sums and results are those of torch._scaled_mm, in fp32
and bf16 (arXiv 2209.05433). The scale follows from the largest element of the tensor itself ("current scaling"), so no
history has to be saved, restored, or kept equal between layouts. It is a power of two, which rounds nothing: only
elements near fp8's smallest numbers depend on it. Without a gradient, products stay in bf16.

A tensor that tensor ranks hold in parts has one scale: they agree on its largest element.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import functional

from gpt.model.gpt import GPT
from parallel.axes.tensor_parallel import KeyValueProjection, RowLinear

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
PROJECTIONS = ("attention.q", "attention.k", "attention.v", "attention.out", "mlp.gate", "mlp.up", "mlp.down")
MIN_LARGEST = 2.0**-60  # a smaller tensor counts as 0: its scale would leave the range of fp32
EXPONENT = 0x7F800000  # the bits of an fp32 number without sign and fraction: the power of two below it


@dataclass(frozen=True)
class Fp8Product:
    """x @ weight.T + bias in fp8; in place of functional.linear.

    `group`: torch's name of the group of tensor ranks that hold the product in parts; "" without. The others say which
    of its tensors are in parts.
    """

    group: str = ""
    splits_x: bool = False
    splits_weight: bool = False
    splits_grad: bool = False

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """(..., o) from x (..., k), weight (o, k), bias (o). All ranks of the group must call it and its backward."""
        if not torch.is_grad_enabled():
            return functional.linear(x, weight, bias)
        splits = self.splits_x, self.splits_weight, self.splits_grad
        rounded = _Rounded.apply(x.flatten(0, -2), weight, self.group, *splits)  # type: ignore[no-untyped-call]
        y: Tensor = _Product.apply(*rounded, bias)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], -1)


class Fp8Linear(nn.Linear):
    """A linear layer that multiplies in fp8, with the parameters of another."""

    def __init__(self, source: nn.Linear, product: Fp8Product) -> None:
        super().__init__(source.in_features, source.out_features, bias=source.bias is not None, device="meta")
        self.weight, self.bias = source.weight, source.bias
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight, self.bias)


def use_fp8_products(model: GPT, mesh: DeviceMesh | None) -> None:
    """Let the projections of all blocks multiply in fp8, after `apply_tensor_parallel` if there are tensor ranks.

    Embedding, norms, attention and head keep bf16. `mesh`: the tensor axis; None if this rank holds the model whole.
    """
    group = "" if mesh is None else mesh.get_group().group_name
    for block in model.blocks.values():
        modules = dict(block.named_modules())
        for path in PROJECTIONS:
            if path in modules:
                layer, parent = modules[path], modules[path.rpartition(".")[0]]
                setattr(parent, path.rpartition(".")[2], _in_fp8(layer, group))


def _in_fp8(layer: nn.Module, group: str) -> nn.Module:
    """The layer with fp8 products."""
    if isinstance(layer, RowLinear):
        layer.product = Fp8Product(group, splits_x=True, splits_weight=True)
        return layer
    if isinstance(layer, KeyValueProjection):  # every rank holds the whole weight, and the gradients of some heads
        layer.product = Fp8Product(group, splits_weight=True, splits_grad=True)
        return layer
    assert isinstance(layer, nn.Linear)
    split = group != ""
    return Fp8Linear(layer, Fp8Product(group, splits_weight=split, splits_grad=split))


class _Rounded(torch.autograd.Function):
    """x and a weight as fp8 numbers with their scales, and `result`, which stands for the product and holds nothing.

    Its gradient is that of the product, so x and the weight are saved before the product is computed: recomputation
    stops there. Backward rounds both again, since kept in bf16 they cost nothing.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, group: str, splits_x: bool, splits_weight: bool, splits_grad: bool
    ) -> tuple[Tensor, ...]:
        largest = torch.stack((x.abs().amax(), weight.abs().amax()))
        if splits_x and splits_weight:
            largest = _agreed(largest, group)
        elif splits_weight:
            largest = torch.stack((largest[0], _agreed(largest[1], group)))
        scale_x, scale_w = _scales(largest, E4M3).unbind()
        rounded_x, rounded_w = _rounded(x, scale_x, E4M3), _rounded(weight, scale_w, E4M3)
        ctx.save_for_backward(x, weight, scale_x, scale_w)
        ctx.group, ctx.splits_grad = group, splits_grad
        ctx.mark_non_differentiable(rounded_x, rounded_w, scale_x, scale_w)
        return rounded_x, rounded_w, scale_x, scale_w, x.new_zeros(()).expand(x.size(0), weight.size(0))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale_x, scale_w = ctx.saved_tensors
        grad = grads[-1]
        largest = grad.abs().amax()
        scale_g = _scales(_agreed(largest, ctx.group) if ctx.splits_grad else largest, E5M2)
        rounded = _rounded(grad, scale_g, E5M2)
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = _multiply(rounded, _by_columns(_rounded(weight, scale_w, E4M3)), scale_g, scale_w)
        if ctx.needs_input_grad[1]:
            of_weight = _multiply(rounded.t().contiguous(), _by_columns(_rounded(x, scale_x, E4M3)), scale_g, scale_x)
        return of_x, of_weight, None, None, None, None


class _Product(torch.autograd.Function):
    """The product of what `_Rounded` gave; its gradient goes to `result`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale_x: Tensor, scale_w: Tensor, result: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.has_bias = bias is not None
        return _multiply(x, weight.t(), scale_x, scale_w, bias=bias, fast=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, None, grads[0], grads[0].sum(0) if ctx.has_bias else None


def _agreed(largest: Tensor, group: str) -> Tensor:
    """The largest element over all tensor ranks."""
    functional_collectives = torch.ops._c10d_functional
    everywhere: Tensor = functional_collectives.wait_tensor(functional_collectives.all_reduce(largest, "max", group))
    return everywhere


def _scales(largest: Tensor, dtype: torch.dtype) -> Tensor:
    """Powers of two, fp32, by which elements up to `largest` are multiplied before they are rounded to `dtype`."""
    room = torch.finfo(dtype).max / largest.float().clamp(min=MIN_LARGEST)
    return (room.view(torch.int32) & EXPONENT).view(torch.float32)


def _rounded(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded numbers, row by row in memory: gradients may come transposed, and tensor cores refuse these."""
    return (x * scale).to(dtype).contiguous()


def _by_columns(x: Tensor) -> Tensor:
    """The matrix, column by column in memory, as tensor cores read their second fp8 operand."""
    return x.t().contiguous().t()


def _multiply(
    a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, *, bias: Tensor | None = None, fast: bool = False
) -> Tensor:
    """a @ b + bias without the scales, in bf16. `fast`: add up in the tensor cores' own, shorter numbers."""
    y: Tensor = torch._scaled_mm(
        a,
        b,
        scale_a=scale_a.reciprocal(),
        scale_b=scale_b.reciprocal(),
        bias=bias,
        out_dtype=torch.bfloat16,
        use_fast_accum=fast,
    )
    return y
