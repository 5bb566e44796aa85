"""Softmax attention over queries, keys and values: torch's kernel, or, in compiled code on a CPU, products of query
blocks where they are faster; holds no weights.

Shapes: b sequences, h heads, t queries, s keys, e = d_head.
"""

import torch
from torch import Tensor
from torch.nn import functional

QUERY_BLOCK = 128
LONGEST_IN_BLOCKS = 1024  # from 2048 on torch's kernel is as fast, and it keeps no (t, s) probabilities


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """(b, h, t, e) from q (b, h, t, e) and k, v (b, h, s, e). `mask`: True where a query may look; None is causal, for
    which t is s or 1."""
    t = q.size(2)
    if mask is None and t > 1 and _blocks_are_faster(q):
        return _causal_in_blocks(q, k, v)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and bool(t > 1))


def _blocks_are_faster(q: Tensor) -> bool:
    return (
        q.device.type == "cpu"
        and q.dtype == torch.bfloat16
        and torch.compiler.is_compiling()
        and bool(q.size(2) <= LONGEST_IN_BLOCKS)
    )


def _causal_in_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A block of queries against the keys up to its end: two large matrix products, for which a CPU has fast bf16
    code, and between them a softmax in fp32, which the compiler makes one loop. Blocks beyond the diagonal are never
    computed."""
    parts = []
    for begin in range(0, q.size(2), QUERY_BLOCK):
        end = min(begin + QUERY_BLOCK, q.size(2))
        scores = q[:, :, begin:end] @ k[:, :, :end].transpose(-1, -2)  # (b, h, 128, end)
        scores = scores.to(torch.promote_types(q.dtype, torch.float32)) * q.size(3) ** -0.5
        later = torch.ones(end - begin, end, dtype=torch.bool, device=q.device).triu(begin + 1)
        p = scores.masked_fill(later, -torch.inf).softmax(dim=-1).to(q.dtype)
        parts.append(p @ v[:, :, :end])
    return torch.cat(parts, dim=2)
