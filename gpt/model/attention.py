"""Softmax attention over queries, keys and values, by the fastest kernel that the mask and the device allow.

On a GPU, attention_kernels.py gives the order in which torch tries its kernels.

Shapes: b sequences, h heads, k key-value heads, t queries, s keys, e = d_head.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.backends import cuda
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from gpt.errors import ConfigError
from gpt.model.attention_kernels import AttentionKernel, kernels_for
from gpt.model.cpu_attention import CausalOnCPU
from gpt.model.masks import AttentionMask, is_segmented
from gpt.model.segment_attention import segment_attention

Mask = Tensor | AttentionMask | None
BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask = None) -> Tensor:
    """(b, h, t, e) from q (b, h, t, e) and k, v (b, k, s, e); each run of h / k query heads shares one key-value head.

    `mask`: None is causal, for which t is s or 1. A tensor of booleans broadcasts to (b, h, t, s), True where a query
    may attend to a key. An AttentionMask, with t = s, keeps the fused kernels.
    """
    groups = q.size(1) // k.size(1)
    if isinstance(mask, AttentionMask) and mask.blocks is not None:
        return _on_gpu(q, k, v, mask)
    if groups > 1:
        if q.size(2) == 1:  # decoding: treat the heads of a group as extra positions, so K and V are not repeated
            y = functional.scaled_dot_product_attention(
                q.reshape(q.size(0), -1, groups, q.size(3)), k, v, attn_mask=_as_tensor(mask, q)
            )
            return y.reshape(q.shape)
        if _shares_heads_on_gpu(q, mask):
            causal = mask is None or (isinstance(mask, AttentionMask) and mask.kind == "causal")
            return functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    if is_segmented(mask) and q.device.type in ("cpu", "meta"):
        assert isinstance(mask, AttentionMask)
        out: Tensor = segment_attention(q, k, v, mask.segment_ids, mask.kind == "causal")[0]
        return out
    if isinstance(mask, AttentionMask) and mask.kind == "full" and mask.segment_ids is None:
        return functional.scaled_dot_product_attention(q, k, v)
    rule = _as_tensor(mask, q)
    causal = rule is None and bool(q.size(2) > 1)
    if causal and q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.compiler.is_compiling():
        out = CausalOnCPU.apply(q, k, v)  # type: ignore[no-untyped-call]
        return out
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=rule, is_causal=causal)


def _shares_heads_on_gpu(q: Tensor, mask: Mask) -> bool:
    """Whether a fused kernel reads each key-value head for several queries, so that K and V need not be repeated.

    FlashAttention and cuDNN do, in half precision and without a tensor as mask. In fp32 only the kernel of products and
    a softmax does, which keeps (b, h, t, s) scores: repeated heads and the memory-efficient kernel take less.
    """
    plain = mask is None or (isinstance(mask, AttentionMask) and mask.segment_ids is None and mask.kind != "prefix")
    return q.device.type == "cuda" and q.dtype in (torch.bfloat16, torch.float16) and plain


@contextmanager
def kernel_order(device: torch.device, kernel: AttentionKernel = "auto") -> Iterator[None]:
    """Inside the block, attention on CUDA takes the first kernel of `kernels_for` that accepts its inputs.

    cuDNN declines under torch's deterministic algorithms; FlashAttention, whose backward can be deterministic, follows.
    """
    if device.type != "cuda":
        yield
        return
    order = kernels_for(torch.cuda.get_device_capability(device), kernel)
    with sdpa_kernel([BACKENDS[name] for name in order], set_priority=True):
        yield


def check_kernel_on_gpu(
    kernel: AttentionKernel, *, device: torch.device, dtype: torch.dtype, heads: tuple[int, int], seq_len: int, e: int
) -> None:
    """ConfigError if torch's kernel of this name declines causal attention of these sizes on this GPU.

    `heads`: query heads and key-value heads of a rank; `e`: d_head. The error ends with torch's reason.
    """
    if kernel in ("auto", "math"):
        return
    q, k = (torch.empty(1, count, seq_len, e, dtype=dtype, device=device, requires_grad=True) for count in heads)
    inputs = cuda.SDPAParams(q, k, k, None, 0.0, True, heads[0] != heads[1])
    accepts = {
        "cudnn": cuda.can_use_cudnn_attention,
        "flash": cuda.can_use_flash_attention,
        "efficient": cuda.can_use_efficient_attention,
    }[kernel]
    with warnings.catch_warnings(record=True) as reasons:
        warnings.simplefilter("always")
        if accepts(inputs, debug=True):
            return
    reason = " ".join(str(reasons[-1].message).split("(Triggered")[0].split()) if reasons else "torch gives no reason"
    raise ConfigError(f'parallel.attention = "{kernel}" is invalid on this GPU: {reason.rstrip(". ")}. Use "auto"')


def _as_tensor(mask: Mask, q: Tensor) -> Tensor | None:
    """The booleans of a mask; None for plain causal attention."""
    if not isinstance(mask, AttentionMask):
        return mask
    if mask.kind == "causal" and mask.segment_ids is None:
        return None
    return mask.dense(q.size(0), q.size(2), q.device)


@cache
def _compiled_flex_attention() -> Any:
    """One object for all layers and steps: making it takes the host longer than a short kernel takes the GPU."""
    return torch.compile(flex_attention)


def _on_gpu(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
    """FlexAttention, which skips blocks that the mask excludes. Only compiled is it fused."""
    attention: Any = flex_attention if torch.compiler.is_compiling() else _compiled_flex_attention()
    out: Tensor = attention(q, k, v, block_mask=mask.blocks, enable_gqa=q.size(1) != k.size(1))
    return out
