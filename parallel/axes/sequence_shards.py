"""Gather and scatter a sequence between tensor ranks, with gradients, on plain tensors.

Between blocks a rank holds its share of the sequence, (b, t/tp, d); arXiv 2205.05198, section 4.2. Every tensor rank
must call these functions, forward and backward. DTensor sends the same messages, but dispatches every operation in
Python. Functional collectives suit compiled blocks, and the policy of selective recomputation sees them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from parallel.axes.reduce_scatter import reduce_scatter, sums_whole_tensors

functional = torch.ops._c10d_functional


@dataclass(frozen=True)
class TensorRanks:
    """The tensor ranks that share a sequence, as compiled code can read them."""

    group: str  # torch's name of the process group
    size: int
    rank: int  # of this process
    by_chunks: bool  # how they reduce and scatter, see parallel.axes.reduce_scatter

    def gathered(self, share: Tensor) -> Tensor:
        """The whole sequence (b, t, d) from each rank's share. A rank's gradient is its part of a sum: they are added
        up, and each rank gets its share."""
        way = self.group, self.size, self.by_chunks
        whole: Tensor = _Gather.apply(share, *way)  # type: ignore[no-untyped-call]
        return whole

    def reduced(self, part: Tensor) -> Tensor:
        """This rank's share (b, t/tp, d) of the sum of all ranks' parts (b, t, d)."""
        way = self.group, self.size, self.by_chunks
        share: Tensor = _ReduceScatter.apply(part, *way)  # type: ignore[no-untyped-call]
        return share

    def collected(self, share: Tensor) -> Tensor:
        """The whole sequence from each rank's share, for a computation that all ranks repeat: each of them has the
        whole gradient, and keeps its share of it."""
        whole: Tensor = _Collect.apply(share, self.group, self.size, self.rank)  # type: ignore[no-untyped-call]
        return whole

    def share_of(self, whole: Tensor) -> Tensor:
        """This rank's share of a sequence (b, t, ...) that it holds whole. Sends nothing."""
        length = whole.size(1) // self.size
        return whole.narrow(1, self.rank * length, length).contiguous()


def tensor_ranks(mesh: DeviceMesh) -> TensorRanks:
    """The ranks of a mesh of one axis."""
    by_chunks = sums_whole_tensors(mesh.device_type)
    return TensorRanks(mesh.get_group().group_name, mesh.size(), mesh.get_local_rank(), by_chunks)


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


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor, group: str, size: int, rank: int) -> Tensor:
        ctx.size, ctx.rank = size, rank
        return _all_gather(share, group, size)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0].chunk(ctx.size, dim=1)[ctx.rank].contiguous(), None, None, None


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
