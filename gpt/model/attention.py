"""Softmax attention over queries, keys and values: torch's kernel, with a faster backward where code is compiled for a
CPU; holds no weights.

Shapes: b sequences, h heads, k key-value heads, t queries, s keys, e = d_head; n = b * h.
"""

import torch
from torch import Tensor
from torch.nn import functional

from gpt.model.cpu_attention import _CausalOnCPU


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """(b, h, t, e) from q (b, h, t, e) and k, v (b, k, s, e), of which h / k heads in a row share one. `mask`: True
    where a query may look, for all heads alike; None is causal, for which t is s or 1."""
    groups = q.size(1) // k.size(1)
    if groups > 1:
        if q.size(2) == 1:  # heads that share keys are as good as positions that do: nothing is copied
            y = functional.scaled_dot_product_attention(
                q.reshape(q.size(0), -1, groups, q.size(3)), k, v, attn_mask=mask
            )
            return y.reshape(q.shape)
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    causal = mask is None and bool(q.size(2) > 1)
    if causal and q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.compiler.is_compiling():
        out: Tensor = _CausalOnCPU.apply(q, k, v)  # type: ignore[no-untyped-call]
        return out
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
