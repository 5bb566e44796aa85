"""Causal attention for compiled code on a CPU: torch's forward kernel and a backward of large matrix products."""

from typing import Any

import torch
from torch import Tensor

MIN_QUERY_BLOCK, MAX_QUERY_BLOCKS = 128, 8


class CausalOnCPU(torch.autograd.Function):
    """torch's forward kernel with a backward made of large matrix products, for which CPUs have fast bf16 code.

    torch's own backward kernel takes a third longer (docs/results/). The compiler fuses the work between two products.
    Like FlashAttention (arXiv 2205.14135, algorithm 4) it keeps the softmax sums and no probabilities; unlike it, it
    rounds scores to bf16 between products, as unfused attention under autocast does.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, log_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
        ctx.save_for_backward(q, k, v, out, log_sums)
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out, log_sums = ctx.saved_tensors
        grads = causal_backward(grad_outputs[0], q, k, v, out, log_sums)
        return grads[0], grads[1], grads[2]


def causal_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sums: Tensor) -> list[Tensor]:
    """Gradients w.r.t. q, k and v (b, h, t, e), given that w.r.t. `out` (b, h, t, e) and the log_sums (b, h, t).

    Each block of queries meets only the keys up to its end, which skips most of what lies beyond the diagonal.
    """
    shape, t, scale = q.shape, q.size(2), q.size(3) ** -0.5
    grad, q, k, v, out = (x.reshape(-1, t, x.size(3)) for x in (grad, q, k, v, out))  # (n, t, e)
    wide = log_sums.dtype
    log_sums = log_sums.reshape(-1, t, 1)
    along = (grad.to(wide) * out.to(wide)).sum(-1, keepdim=True)  # (n, t, 1): the softmax gradient's subtrahend
    grad_q, grad_k, grad_v = [], torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
    block = max(MIN_QUERY_BLOCK, -(-t // MAX_QUERY_BLOCKS))
    for begin in range(0, t, block):
        end = min(begin + block, t)
        rows, keys = slice(begin, end), slice(0, end)
        later = torch.ones(end - begin, end, dtype=torch.bool, device=q.device).triu(begin + 1)
        scores = (q[:, rows] @ k[:, keys].mT).to(wide)  # (n, block, end)
        p = (scores * scale - log_sums[:, rows]).exp().masked_fill(later, 0.0)
        grad_p = (grad[:, rows] @ v[:, keys].mT).to(wide)
        grad_scores = (p * (grad_p - along[:, rows]) * scale).to(q.dtype)
        grad_q.append(grad_scores @ k[:, keys])
        grad_k[:, keys] += grad_scores.mT @ q[:, rows]
        grad_v[:, keys] += p.to(q.dtype).mT @ grad[:, rows]
    return [x.to(q.dtype).reshape(shape) for x in (torch.cat(grad_q, dim=1), grad_k, grad_v)]
