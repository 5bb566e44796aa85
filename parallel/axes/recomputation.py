"""Choose which activations of a block are kept for backward and which are computed again. Results do not change.

`full` keeps a block's input. `selective` keeps the outputs of matrix products and of attention, which are expensive. It
recomputes norms, the activation function, rotary positions and, on tensor ranks, the gathered inputs. (arXiv
2205.05198, section 5, recomputes only attention's softmax, as torch's attention kernels do anyway.)
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

from gpt.model.segment_attention import segment_attention
from parallel.axes.fp8 import PROJECTIONS
from parallel.axes.reduce_scatter import reduce_scatter_by_chunks
from parallel.layout.config import ParallelConfig

Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]

aten = torch.ops.aten
_PRODUCTS = (aten.mm.default, aten.addmm.default, aten._scaled_mm.default)
_ATTENTION = (
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    segment_attention._opoverload,
    torch.ops.higher_order.flex_attention,  # within documents, on a GPU, in compiled blocks
)
_REDUCE_SCATTERS = (
    torch.ops._c10d_functional.reduce_scatter_tensor.default,
    reduce_scatter_by_chunks._opoverload,  # on gloo
)
_ALL_REDUCE = torch.ops._c10d_functional.all_reduce.default  # takes a tensor, "sum" or "max", and the group's name
_REDUCED = ("attention.out", "mlp.down")  # on tensor ranks a reduce-scatter or an all-reduce follows each


def wrap_block(block: nn.Module, parallel: ParallelConfig) -> nn.Module:
    """Compile a block if `parallel.compile` is true, and wrap it for `parallel.recompute`.

    `selective` is compiled together with its policy, which the compiler obeys. `full` wraps the compiled block and
    keeps its input. Blocks draw no random numbers, so no generator state is kept.
    """
    if parallel.recompute == "selective":
        contexts = partial(_keep_products, products_of(block), parallel.tensor)
        block = checkpoint_wrapper(block, preserve_rng_state=False, context_fn=contexts)
    if parallel.compile:
        # Static shapes: steps have one, and code for a known shape is faster. Another shape is compiled for itself.
        options: dict[str, Any] | None = {"_micro_pipeline_tp": True} if parallel.async_tensor else None
        block.compile(dynamic=False, options=options)
    if parallel.recompute == "full":
        block = checkpoint_wrapper(block, preserve_rng_state=False)
    return block


def products_of(block: nn.Module) -> list[str]:
    """The matrix products of a block's forward pass in order: the paths of its projections, such as "mlp.down".

    An adapter adds "mlp.down.adapter.a" and "mlp.down.adapter.b" after its projection.
    """
    modules = dict(block.named_modules())
    products = []
    for path in PROJECTIONS:
        if path in modules:
            products.append(path)
            if hasattr(modules[path], "adapter"):
                products += [f"{path}.adapter.a", f"{path}.adapter.b"]
    return products


def _keep_products(products: list[str], tensor: int) -> Contexts:
    """The contexts of a block's forward pass and of its recomputation.

    Backward does not need the output of the last product. On tensor ranks, a product before a sum over ranks gives a
    part of it; the sum is kept instead, of which sequence parallelism leaves a rank the `tensor`-th part. An adapter's
    A x is `rank` wide, and B times it is cheap to compute again.
    """
    reduced = [path for path in products if path.startswith(_REDUCED) and not path.endswith(".b")]
    dropped = {path for path in products if path.endswith(".adapter.b")} | {"mlp.down"}
    if tensor > 1:
        dropped |= set(reduced)
    contexts: Contexts = create_selective_checkpoint_contexts(  # type: ignore[no-untyped-call]
        _policy(
            {i for i, path in enumerate(products) if path not in dropped},
            {i for i, path in enumerate(reduced) if path != "mlp.down"},
        )
    )
    return contexts


def _policy(products: set[int], reduced: set[int]) -> Callable[..., CheckpointPolicy]:
    """Keep the outputs of these products, and of these sums over tensor ranks, each counted in order."""
    numbers = {again: {kind: count() for kind in ("product", "reduced")} for again in (False, True)}

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if op in _PRODUCTS:
            keep = next(numbers[context.is_recompute]["product"]) in products
        elif op in _REDUCE_SCATTERS or (op is _ALL_REDUCE and args[1] == "sum"):
            keep = next(numbers[context.is_recompute]["reduced"]) in reduced
        else:  # fp8's largest elements are a few bytes, and not sent again
            keep = op in _ATTENTION or op is _ALL_REDUCE
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    return policy
