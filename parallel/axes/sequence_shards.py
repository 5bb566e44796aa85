"""Gather and scatter a sequence between tensor ranks, with gradients, on plain tensors.

Between blocks a rank holds its share of the sequence, (b, t/tp, d); arXiv 2205.05198, section 4.2. Without sequence
parallelism it holds the whole sequence, and sums take the place of gathers and scatters (arXiv 1909.08053, section 3).
Every tensor rank must call these functions, forward and backward. DTensor sends the same messages, but dispatches every
operation in Python. Functional collectives suit compiled blocks, and the policy of selective recomputation sees them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from parallel.axes.reduce_scatter import group_named, reduce_scatter, start_chunk_sums, sums_whole_tensors

functional = torch.ops._c10d_functional


@dataclass(frozen=True)
class TensorRanks:
    """The tensor ranks of a sequence, as compiled code can read them.

    Between matrices a rank holds its share of the sequence, (b, t/tp, d), or without `splits_sequence` the whole one,
    (b, t, d): `held`.
    """

    group: str  # torch's name of the process group
    size: int
    rank: int  # of this process
    by_chunks: bool  # how they reduce and scatter, see parallel.axes.reduce_scatter
    splits_sequence: bool
    splits_backward: bool  # see parallel.layout.config.splits_backward

    def gathered(self, held: Tensor, *, keeps_gradient: bool = False) -> Tensor:
        """The whole sequence (b, t, d) from what each rank holds. A rank's gradient is its part of a sum: they are
        added up, and each rank gets the part that it holds.

        Backward may overwrite the gradient of the result, unless `keeps_gradient`: its maker needs it again.
        """
        if not self.splits_sequence:
            same: Tensor = _SumOfGradients.apply(held, self.group, keeps_gradient)  # type: ignore[no-untyped-call]
            return same
        way = self.group, self.size, self.by_chunks
        whole: Tensor = _Gather.apply(held, *way)  # type: ignore[no-untyped-call]
        return whole

    def whole_of(self, held: Tensor) -> Tensor:
        """The whole sequence (b, t, d) from what each rank holds, without a gradient."""
        return _all_gather(held, self.group, self.size) if self.splits_sequence else held

    def start_sum(self, part: Tensor) -> Callable[[], Tensor]:
        """Start to add up each rank's part (b, t, d), which it may overwrite. The result waits for the sum and gives
        what this rank holds of it. Without a gradient, and not for compiled code."""
        if self.splits_sequence:
            return _started_reduce_scatter(part, self)
        return _started_sum(part, self.group)

    def reduced(self, part: Tensor) -> Tensor:
        """What this rank holds of the sum of all ranks' parts (b, t, d). It may overwrite `part`."""
        if not self.splits_sequence:
            whole: Tensor = _Sum.apply(part, self.group)  # type: ignore[no-untyped-call]
            return whole
        way = self.group, self.size, self.by_chunks
        share: Tensor = _ReduceScatter.apply(part, *way)  # type: ignore[no-untyped-call]
        return share

    def collected(self, held: Tensor) -> Tensor:
        """The whole sequence from what each rank holds, for a computation that all ranks repeat: each of them has the
        whole gradient, and keeps the part that it holds."""
        if not self.splits_sequence:
            return held
        whole: Tensor = _Collect.apply(held, self.group, self.size, self.rank)  # type: ignore[no-untyped-call]
        return whole

    def held_of(self, whole: Tensor) -> Tensor:
        """The part that this rank holds between matrices of a sequence (b, t, ...). Sends nothing."""
        if not self.splits_sequence:
            return whole
        length = whole.size(1) // self.size
        return whole.narrow(1, self.rank * length, length).contiguous()


def tensor_ranks(mesh: DeviceMesh, *, splits_sequence: bool, splits_backward: bool) -> TensorRanks:
    """The ranks of a mesh of one axis."""
    group, by_chunks = mesh.get_group().group_name, sums_whole_tensors(mesh.device_type)
    return TensorRanks(group, mesh.size(), mesh.get_local_rank(), by_chunks, splits_sequence, splits_backward)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor, group: str, size: int, by_chunks: bool) -> Tensor:
        ctx.group, ctx.size, ctx.by_chunks = group, size, by_chunks
        return _all_gather(share, group, size)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _reduce_scatter(grads[0], ctx.group, ctx.size, by_chunks=ctx.by_chunks), None, None, None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: str, size: int, by_chunks: bool) -> Tensor:
        ctx.group, ctx.size = group, size
        return _reduce_scatter(part, group, size, by_chunks=by_chunks)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _all_gather(grads[0], ctx.group, ctx.size), None, None, None


class _Sum(torch.autograd.Function):
    """The sum of all ranks' parts. Every rank computes the same from it, and so has the whole gradient."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: str) -> Tensor:
        return _summed(part.detach(), group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None


class _SumOfGradients(torch.autograd.Function):
    """The same sequence, from which each rank computes a part: their gradients are added up."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, group: str, keeps_gradient: bool) -> Tensor:
        ctx.group, ctx.keeps_gradient = group, keeps_gradient
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _summed(grads[0].clone() if ctx.keeps_gradient else grads[0], ctx.group), None, None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor, group: str, size: int, rank: int) -> Tensor:
        ctx.size, ctx.rank = size, rank
        return _all_gather(share, group, size)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0].chunk(ctx.size, dim=1)[ctx.rank].contiguous(), None, None, None


def _summed(part: Tensor, group: str) -> Tensor:
    """The sum over ranks, the same bits on all of them. It may overwrite `part`."""
    part = part.contiguous()
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():  # the compiler, recomputation, a counter
        whole: Tensor = functional.wait_tensor(functional.all_reduce(part, "sum", group))
        return whole
    dist.all_reduce(part, group=group_named(group))
    return part


def _started_sum(part: Tensor, group: str) -> Callable[[], Tensor]:
    part = part.contiguous()
    work = dist.all_reduce(part, group=group_named(group), async_op=True)

    def finish() -> Tensor:
        work.wait()
        return part

    return finish


def _started_reduce_scatter(part: Tensor, ranks: TensorRanks) -> Callable[[], Tensor]:
    parts = torch.cat(part.chunk(ranks.size, dim=1))  # (tp * b, t/tp, d)
    if not ranks.by_chunks:
        sent = functional.reduce_scatter_tensor(parts, "sum", ranks.size, ranks.group)
    elif is_in_torch_dispatch_mode():  # a counter of messages or of memory
        sent = reduce_scatter(parts, ranks.size, ranks.group, by_chunks=True)
    else:
        return start_chunk_sums(parts, ranks.size, ranks.group)
    waiting = [parts]  # NCCL reads them until the message has ended, and a dry run has to count them so long

    def finish() -> Tensor:
        share: Tensor = functional.wait_tensor(sent)
        waiting.clear()
        return share

    return finish


def _all_gather(share: Tensor, group: str, size: int) -> Tensor:
    """(b, t, d) from (b, t/tp, d)."""
    sent = functional.all_gather_into_tensor(share.contiguous(), size, group)
    parts: Tensor = functional.wait_tensor(sent)  # (tp * b, t/tp, d)
    # The compiler's pass that splits messages looks for a concatenation of chunks, or for one view.
    if share.size(0) == 1:
        return parts.view(1, size * share.size(1), *share.shape[2:])
    return torch.cat(parts.chunk(size), dim=1)


def _reduce_scatter(part: Tensor, group: str, size: int, *, by_chunks: bool) -> Tensor:
    """(b, t/tp, d) from (b, t, d)."""
    parts = torch.cat(part.chunk(size, dim=1))  # (tp * b, t/tp, d)
    return reduce_scatter(parts, size, group, by_chunks=by_chunks)
