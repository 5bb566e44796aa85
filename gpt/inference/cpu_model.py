"""Pack a model's blocks for fast inference on a CPU. The results equal the model's own to rounding.

A step of generation reads every weight for only a few rows. Packing gives the weights the memory layout of the kernels.
It joins projections of the same input into one product, and adds a residual inside its product. A packed model cannot
train, and its weights cannot be read back. Shapes as in gpt/model/gpt.py; i and o features of a layer's input and
output.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from gpt.inference.model import InferenceModel, LocalModel
from gpt.model.attention import Mask, attend
from gpt.model.gpt import GPT, Attention, Block, LayerCache, SwiGLUMLP
from gpt.model.rope import Angles, rotate

# oneDNN compiles and keeps about 0.6 MB of code for each weight's shape and number of rows, so few numbers are used.
_SLICE_ROWS, _STEP_ROWS, _TAIL_ROWS = 512, 64, 16


class BlockedLinear(nn.Module):
    """Linear layers with one input, joined, in oneDNN's blocked layout."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        super().__init__()
        weight, self.bias = _joined(linears)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return (b, t, o), plus `residual` (b, t, o) if given."""
        y: Tensor
        if residual is None:
            y = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        else:
            y = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")
        return y


class TransposedLinear(nn.Module):
    """Linear layers with one input, joined, weights stored as (i, o): faster for a single row if o is larger than
    i."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        super().__init__()
        weight, self.bias = _joined(linears)
        self.weight = weight.T.contiguous()  # (i, o)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.T, self.bias)


class PackedRMSNorm(nn.Module):
    """nn.RMSNorm with half as many operations."""

    def __init__(self, norm: nn.RMSNorm) -> None:
        super().__init__()
        assert norm.eps is not None
        self.weight = norm.weight.detach().clone()
        self.eps = torch.tensor(norm.eps)

    def forward(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)  # (b, t, 1)
        scale = torch.addcmul(self.eps, length, length, value=1.0 / x.size(-1)).rsqrt_()
        return (x * scale * self.weight).to(x.dtype)


class PackedBlock(nn.Module):
    """A `Block` with packed weights: same arguments and, to rounding, the same result. `rows`: see `pack`."""

    def __init__(self, block: Block, *, rows: int) -> None:
        super().__init__()
        attention, mlp = block.attention, block.mlp
        assert isinstance(attention, Attention)
        self.d_head = attention.d_head
        self.heads = attention.q.out_features // self.d_head
        self.kv_heads = attention.k.out_features // self.d_head
        self.attention_norm, self.mlp_norm = packed_norm(block.attention_norm), packed_norm(block.mlp_norm)
        self.qkv = packed_linear([attention.q, attention.k, attention.v], rows=rows)
        self.out = BlockedLinear([attention.out])
        self.is_gated = isinstance(mlp, SwiGLUMLP)
        self.up = packed_linear([mlp.gate, mlp.up] if isinstance(mlp, SwiGLUMLP) else [mlp.up], rows=rows)
        self.down = BlockedLinear([mlp.down])

    def forward(
        self,
        x: Tensor,
        angles: Angles | None = None,
        mask: Mask = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        b, t = x.shape[:2]
        qkv = in_slices(self._qkv, x).view(b, t, -1, self.d_head).transpose(1, 2)  # (b, h + 2k, t, e)
        turned, v = qkv[:, : -self.kv_heads], qkv[:, -self.kv_heads :]
        if angles is not None:
            turned = rotate(turned, angles.cos, angles.sin)
        q, k = turned[:, : self.heads], turned[:, self.heads :]
        if cache is not None:
            k, v = cache.append(k, v)  # (b, k, s, e)
        y = attend(q, k, v, mask)
        return in_slices(self._after_attention, y.transpose(1, 2).reshape(b, t, -1), x)

    def _qkv(self, x: Tensor) -> Tensor:
        found: Tensor = self.qkv(self.attention_norm(x))
        return found

    def _after_attention(self, y: Tensor, x: Tensor) -> Tensor:
        """The block's output from the attention's `y` and the block's input `x`, of any rows."""
        x = self.out(y, x)
        wide = self.up(self.mlp_norm(x))
        if self.is_gated:
            gate, up = wide.chunk(2, dim=-1)
            wide = functional.silu(gate) * up
        else:
            wide = functional.gelu(wide, approximate="tanh")
        z: Tensor = self.down(wide, x)
        return z


def in_slices(work: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`work` of inputs (b, t, i), done for slices of rows: (b, t, o). Each row must not depend on the others.

    The slices have few different sizes, so that a process that meets inputs of every size keeps little compiled code.
    They also stay in the processor's caches.
    """
    b, t = inputs[0].shape[:2]
    sizes = slice_sizes(b * t)
    if len(sizes) == 1:
        return work(*inputs)
    found = []
    for slices in zip(*(torch.split(one.flatten(0, 1), sizes) for one in inputs), strict=True):
        n = len(slices[0])
        fill = 0 if n % _TAIL_ROWS == 0 else _TAIL_ROWS - n % _TAIL_ROWS
        found.append(work(*(functional.pad(one, (0, 0, 0, fill)) for one in slices))[:n] if fill else work(*slices))
    return torch.cat(found).view(b, t, -1)


def slice_sizes(rows: int) -> list[int]:
    """The sizes of the slices of `rows` rows: slices of 512, one of the largest multiple of 64 that fits, and the rest.

    Up to 64 rows are one slice: a step of generation has as many rows as texts, and always the same number.
    """
    if rows <= _STEP_ROWS:
        return [rows]
    whole, rest = divmod(rows, _SLICE_ROWS)
    steps = rest - rest % _STEP_ROWS
    return [*[_SLICE_ROWS] * whole, *(size for size in (steps, rest - steps) if size)]


def pack(model: GPT, *, rows: int) -> None:
    """Replace the blocks and the head of a model on a CPU by packed ones, for steps of about `rows` rows.

    Needs memory for one more block while it runs. Afterwards a tied weight is in memory twice. Does nothing where
    `can_pack` is False.
    """
    head = model.head
    assert isinstance(head, nn.Linear), "packed already, or a pipeline stage"
    if not can_pack(head.weight.device, head.weight.dtype):
        return
    model.requires_grad_(False)
    for name, block in model.blocks.items():
        assert isinstance(block, Block)
        model.blocks[name] = PackedBlock(block, rows=rows)
    if model.norm is not None:
        model.norm = packed_norm(model.norm)
    setattr(model, "head", packed_linear([head], rows=rows))  # noqa: B010  another type


def packed(model: InferenceModel, *, rows: int) -> InferenceModel:
    """Pack a model on one device. Returns a model over many ranks unchanged."""
    if not isinstance(model, LocalModel):
        return model
    pack(model.model, rows=rows)
    return LocalModel(model.model)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether oneDNN is available and has kernels for this precision on this processor."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def packed_linear(linears: Sequence[nn.Linear], *, rows: int) -> nn.Module:
    """Join linear layers in the faster memory layout (docs/results/README.md)."""
    widens = sum(linear.out_features for linear in linears) > linears[0].in_features
    single = rows == 1 and widens and linears[0].weight.dtype == torch.float32
    return TransposedLinear(linears) if single else BlockedLinear(linears)


def packed_norm(norm: nn.Module) -> nn.Module:
    """A copy of a norm, of an RMSNorm with fewer operations."""
    return PackedRMSNorm(norm) if isinstance(norm, nn.RMSNorm) else copy.deepcopy(norm).requires_grad_(False)


def _joined(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    weight = torch.cat([linear.weight.detach() for linear in linears])
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    return weight, torch.cat(biases) if biases else None
