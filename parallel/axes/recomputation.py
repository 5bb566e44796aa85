"""Which activations of a block are kept for backward and which are computed again; never changes a result.

`full` keeps a block's input. `selective` keeps what is dear to compute, outputs of matrix products and of attention,
and computes the cheap rest again: norms, activation function, rotary positions and, on tensor ranks, the gathered
inputs (arXiv 2205.05198, section 5, takes attention's softmax alone; torch's attention kernels do that by themselves).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from gpt.model.config import ModelConfig
from gpt.model.segment_attention import segment_attention
from parallel.layout.config import ParallelConfig

Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]

aten = torch.ops.aten
_PRODUCTS = (aten.mm.default, aten.addmm.default)
_ATTENTION = (
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    segment_attention._opoverload,
)
_REDUCE_SCATTER = torch.ops._c10d_functional.reduce_scatter_tensor.default
_OUT = 3  # a block's products in order: q, k, v, out, then gate and up or up alone, then down


def wrap_block(block: nn.Module, config: ModelConfig, parallel: ParallelConfig) -> nn.Module:
    """A block that is compiled where `parallel.compile` says so and keeps what `parallel.recompute` says.

    `selective` is compiled with its policy, which the compiler obeys. `full` runs a compiled block again: the other way
    round, torch 2.13 fails to save a DTensor's mesh for backward. Blocks draw no random numbers, so no state of a
    generator need be kept.
    """
    if parallel.recompute == "selective":
        contexts = partial(_keep_products, config, parallel.tensor)
        block = checkpoint_wrapper(block, preserve_rng_state=False, context_fn=contexts)
    if parallel.compile:
        # With symbolic sizes torch 2.13 fails on some of a DTensor's; each batch shape is compiled for itself instead.
        options: dict[str, Any] | None = {"_micro_pipeline_tp": True} if parallel.async_tensor else None
        block.compile(dynamic=False if parallel.tensor > 1 else None, options=options)
    if parallel.recompute == "full":
        block = checkpoint_wrapper(block, preserve_rng_state=False)
    return block


def _keep_products(config: ModelConfig, tensor: int) -> Contexts:
    """Contexts for one run of a block, forward and again.

    The last product's output is needed by nothing in backward. On tensor ranks a product that ends in a reduce-scatter
    gives a partial sum over the whole sequence: its reduced share is kept instead, `tensor` times smaller.
    """
    last = 6 if config.activation == "swiglu" else 5
    dropped = {last} if tensor == 1 else {_OUT, last}
    contexts: Contexts = create_selective_checkpoint_contexts(_policy(dropped))  # type: ignore[no-untyped-call]
    return contexts


def _policy(dropped: set[int]) -> Callable[..., CheckpointPolicy]:
    numbers = {again: {kind: count() for kind in ("product", "reduced")} for again in (False, True)}

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if op in _PRODUCTS:
            keep = next(numbers[context.is_recompute]["product"]) not in dropped
        elif op is _REDUCE_SCATTER:
            keep = next(numbers[context.is_recompute]["reduced"]) == 0
        else:
            keep = op in _ATTENTION
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    return policy
