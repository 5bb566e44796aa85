"""Layers of tensor ranks for inference, on plain tensors: what Megatron-LM's layers compute (arXiv 1909.08053).

Their parameters are set from outside, as plain tensors.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from gpt.losses.base import VocabShard
from parallel.axes.tensor_parallel import KeyValueProjection, look_up_shard, repeat_heads


def _declare(layer: nn.Module) -> None:
    """Declare the parameters of a layer, which are set later."""
    layer.register_parameter("weight", None)
    layer.register_parameter("bias", None)


class ReducedLinear(nn.Module):
    """A linear layer whose input is sharded over tensor ranks: products of this rank, their sum, the bias."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        _declare(self)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, d) on every rank from (b, t, k/tp)."""
        y = functional.linear(x, self.weight)
        dist.all_reduce(y, group=self.group)
        return y if self.bias is None else y + self.bias


class LocalKeyValue(nn.Module):
    """A key or value projection whose heads tensor ranks do not divide; see KeyValueProjection."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, source: KeyValueProjection) -> None:
        super().__init__()
        _declare(self)
        self.rows, self.repeats, self.d_head = source.rows, source.repeats, source.d_head

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, m * d_head) from (b, t, d)."""
        bias = None if self.bias is None else self.bias[self.rows]
        return self.repeated(functional.linear(x, self.weight[self.rows], bias))

    def repeated(self, y: Tensor) -> Tensor:
        """The heads of `rows` as this rank's queries need them; see repeat_heads."""
        return repeat_heads(y, self.repeats, self.d_head)


class ReducedEmbedding(nn.Module):
    """A token embedding with its rows sharded over tensor ranks."""

    weight: Tensor

    def __init__(self, shard: VocabShard) -> None:
        super().__init__()
        _declare(self)
        self.shard = shard

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, t, d) on every rank from ids (b, t). One rank has the row of a token, so the sum is exact."""
        return self.shard.reduce_sum(look_up_shard(tokens, self.weight, start=self.shard.start))


class GatheredHead(nn.Module):
    """A vocabulary head with its rows sharded over tensor ranks."""

    weight: Tensor

    def __init__(self, shard: VocabShard, group: dist.ProcessGroup) -> None:
        super().__init__()
        _declare(self)
        self.shard, self.group = shard, group

    def local_logits(self, hidden: Tensor) -> Tensor:
        """Logits of this rank's rows, (n, v/tp) from (n, d)."""
        return functional.linear(hidden, self.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits of all rows, (n, v or more), the same on every rank. All tensor ranks must call it."""
        mine = self.local_logits(hidden)
        mine = functional.pad(mine, (0, self.shard.max_rows - mine.size(1)))  # the last ranks may hold fewer rows
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(parts, mine, group=self.group)
        return torch.cat(parts, dim=1)
