"""Reduce-scatter on gloo in half the bytes of torch's.

gloo has none for torch to call: torch 2.13 adds up the whole tensor on every rank and keeps a part of it (pull request
118911 of pytorch). Here an all-to-all sends each rank its chunks, and the rank adds them up.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

functional = torch.ops._c10d_functional


def sums_whole_tensors(device_type: str) -> bool:
    """Return whether torch's reduce-scatter between the ranks of this process group is an all-reduce."""
    return device_type == "cpu" and dist.get_backend() == "gloo"


def sum_chunks(out: Tensor, whole: Tensor, group: dist.ProcessGroup | None) -> None:
    """Fill `out` (n,) with the sum over ranks of this rank's chunk of `whole` (ranks * n,).

    Collective over `group`, None for all ranks: one all-to-all. It takes as much memory again as `whole`. A sum
    in bf16 is rounded once. ValueError if torch has no such group; RuntimeError if sizes do not fit.
    """
    received = torch.empty_like(whole)
    chunks = received.view(dist.get_world_size(group), out.numel())
    dist.all_to_all_single(received, whole, group=group)
    _add_up(chunks, out.view(-1))


def _add_up(chunks: Tensor, out: Tensor) -> None:
    """Fill `out` (n,) with the sum of `chunks` (ranks, n)."""
    if len(chunks) == 2:  # the same bits; a sum over rows takes 1.4 times as long in fp32, 8 times in bf16
        torch.add(chunks[0], chunks[1], out=out)
    else:
        torch.sum(chunks, 0, out=out)


def group_named(group: Any) -> Any:
    """The process group of a name of torch's."""
    return dist.distributed_c10d._resolve_process_group(group)  # type: ignore[attr-defined]


def _chunk_sums(parts: Tensor, size: int, group: str) -> Tensor:
    out = parts.new_empty(parts.size(0) // size, *parts.shape[1:])
    sum_chunks(out, parts, group_named(group))
    return out


def start_chunk_sums(parts: Tensor, size: int, group: str) -> Callable[[], Tensor]:
    """Start what `reduce_scatter` does by chunks; the result waits for it and gives the sum. Not for compiled code."""
    received = torch.empty_like(parts)
    work = dist.all_to_all_single(received, parts, group=group_named(group), async_op=True)

    def finish() -> Tensor:
        work.wait()
        out = parts.new_empty(parts.size(0) // size, *parts.shape[1:])
        _add_up(received.view(size, out.numel()), out.view(-1))
        return out

    return finish


@torch.library.custom_op("triaxial::reduce_scatter", mutates_args=())
def reduce_scatter_by_chunks(parts: Tensor, size: int, group: str) -> Tensor:
    """The sum over `size` ranks of this rank's chunk of `parts` (size * b, ...): (b, ...).

    `group`: torch's name of the process group. One operator, so that selective recomputation and compiled code see one.
    """
    return _chunk_sums(parts, size, group)


@reduce_scatter_by_chunks.register_fake
def _(parts: Tensor, size: int, group: str) -> Tensor:
    return parts.new_empty(parts.size(0) // size, *parts.shape[1:])


def reduce_scatter(parts: Tensor, size: int, group: str, *, by_chunks: bool) -> Tensor:
    """The sum over ranks of this rank's chunk of `parts` (size * b, ...): (b, ...). Collective.

    `by_chunks`: see `sums_whole_tensors`. Compiled code cannot ask for it.
    """
    if not by_chunks:
        share: Tensor = functional.wait_tensor(functional.reduce_scatter_tensor(parts, "sum", size, group))
        return share
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():  # the compiler, recomputation, a counter
        operated: Tensor = reduce_scatter_by_chunks(parts, size, group)
        return operated
    return _chunk_sums(parts, size, group)  # the operator's dispatch takes 45 us of a small message's 90


class ChunkReduceScatter(ReduceScatter):
    """FSDP's reduce-scatter of gradients, as sums."""

    def allocate(self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> None:
        assert op == dist.ReduceOp.SUM
        assert not async_op
        sum_chunks(output_tensor, input_tensor, group)
