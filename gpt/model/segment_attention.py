"""Attention within segments on a CPU: torch's kernel once for each segment, without computing scores between segments.

An operator of its own, since segments differ from batch to batch: torch's compiler would recompile for each layout.

Shapes: b sequences, h heads, t positions, e = d_head.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt.losses.marks import PADDING

Slices = tuple[slice, slice]  # rows and positions of one call of the kernel
_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@torch.library.custom_op("triaxial::segment_attention", mutates_args=())
def segment_attention(q: Tensor, k: Tensor, v: Tensor, segment_ids: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Attention of q, k, v (b, h, t, e) within equal `segment_ids` (b, t); 0 where the id is PADDING.

    The positions of a segment are contiguous: an id does not come back in a row after another id.

    Returns the output (b, h, t, e) and the logarithms of the softmax sums (b, h, t), in at least fp32.
    """
    out = torch.zeros_like(q)
    log_sums = torch.zeros(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    for rows, cut in _segments(segment_ids):
        part, sums = _attention(q[rows, :, cut], k[rows, :, cut], v[rows, :, cut], 0.0, causal)
        out[rows, :, cut], log_sums[rows, :, cut] = part, sums
    return out, log_sums


@segment_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, segment_ids: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    sums = torch.empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)
    return torch.empty_like(q), sums


@torch.library.custom_op("triaxial::segment_attention_backward", mutates_args=())
def segment_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sums: Tensor, segment_ids: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients w.r.t. q, k and v (b, h, t, e) from that w.r.t. the output."""
    grads = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for rows, cut in _segments(segment_ids):
        piece = (x[rows, :, cut] for x in (grad, q, k, v, out, log_sums))
        for whole, part in zip(grads, _attention_backward(*piece, 0.0, causal), strict=True):
            whole[rows, :, cut] = part
    return grads


@segment_attention_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sums: Tensor, segment_ids: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, segment_ids, ctx.causal = inputs
    ctx.save_for_backward(q, k, v, *output, segment_ids)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *saved, segment_ids = ctx.saved_tensors
    return *segment_attention_backward(grad, *saved, segment_ids, ctx.causal), None, None


segment_attention.register_autograd(_backward, setup_context=_keep)


def _segments(segment_ids: Tensor) -> Iterator[Slices]:
    """The segments of all rows without padding; those that all rows share come as one."""
    ids = segment_ids.numpy()
    if (ids == ids[0]).all():
        ids, shared = ids[:1], slice(None)
    else:
        shared = None
    for row, line in enumerate(ids):
        borders = [0, *(np.flatnonzero(line[1:] != line[:-1]) + 1).tolist(), len(line)]
        begun = [number for number in line[borders[:-1]].tolist() if number != PADDING]
        assert len(begun) == len(set(begun)), f"row {row}: a segment id comes back after another one, in {begun}"
        for start, stop in pairwise(borders):
            if line[start] != PADDING:
                yield shared or slice(row, row + 1), slice(start, stop)
