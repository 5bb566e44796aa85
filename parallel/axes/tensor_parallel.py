"""Tensor parallelism, with sequence parallelism or without: layers that compute on this rank's part of each parameter.

Megatron-LM's scheme (arXiv 2205.05198, section 4.2). Between blocks each rank holds its share of the sequence,
(b, t/tp, d). Inside attention and MLP it holds its share of the heads and of the hidden width, over the whole sequence.
An all-gather precedes each, and a reduce-scatter follows it. Without sequence parallelism (arXiv 1909.08053, section 3)
every rank holds the whole sequence, (b, t, d) wherever (b, t/tp, d) is written; an all-reduce follows each.

Parameters are DTensors, which checkpoints, the optimizer and FSDP read. FSDP gives the layers their local tensors (see
data_parallel), so that DTensor dispatches nothing in a step. The gradient of a parameter that every tensor rank holds
whole may be a part of a sum; see `gives_partial_gradient`.

If tensor ranks do not divide the key-value heads evenly (2 heads on 4 ranks), the heads are copied, as in Megatron-LM:
see KeyValueProjection.
"""

import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._symmetric_memory import enable_symm_mem_for_group
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Placement, Replicate, Shard, distribute_tensor

from gpt.losses.base import VocabShard, VocabularyOutputs
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT, Block, Embedding
from gpt.model.heads import VocabularyHead, run_head
from parallel.axes.column_products import gather_inputs
from parallel.axes.reduce_scatter import group_named
from parallel.axes.sequence_shards import TensorRanks

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (x, weight, bias) -> x @ weight.T + bias


class VocabularyEmbedding(nn.Module):
    """The token embedding, its rows sharded over tensor ranks.

    Each rank looks up the tokens whose rows it has. A reduce-scatter adds the results up and gives each rank its share
    of the sequence; backward all-gathers the gradient.
    """

    def __init__(self, whole: nn.Embedding, mesh: DeviceMesh, ranks: TensorRanks) -> None:
        super().__init__()
        self.weight = _distributed(whole.weight, mesh, Shard(0))
        self.ranks = ranks
        self.start = mesh.get_local_rank() * -(-whole.num_embeddings // mesh.size())  # the last ranks may hold fewer

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, t/tp, d) from ids (b, t), the same on all tensor ranks."""
        return self.ranks.reduced(look_up_shard(tokens, self.weight, start=self.start))


def look_up_shard(tokens: Tensor, weight: Tensor, *, start: int) -> Tensor:
    """The rows (b, t, d) of ids (b, t), and zeros for ids outside the rows `start` to `start + len(weight)`."""
    here = tokens - start
    held = (here >= 0) & (here < weight.size(0))
    return nn.functional.embedding(here.where(held, 0), weight).where(held.unsqueeze(-1), 0.0)


class RowLinear(nn.Module):
    """A linear layer whose input features are sharded over tensor ranks; a reduce-scatter adds up their products."""

    def __init__(self, whole: nn.Linear, mesh: DeviceMesh, ranks: TensorRanks) -> None:
        super().__init__()
        self.weight = _distributed(whole.weight, mesh, Shard(1))
        self.bias = None if whole.bias is None else _distributed(whole.bias, mesh, Replicate())
        self.ranks = ranks
        self.product: Product = nn.functional.linear

    def forward(self, x: Tensor) -> Tensor:
        """(b, t/tp, d) from (b, t, k/tp)."""
        bias = None if self.bias is None else self.bias / self.ranks.size  # every rank adds its part before the sum
        return self.ranks.reduced(self.product(x, self.weight, bias))


class KeyValueProjection(nn.Module):
    """The key or value projection if tensor ranks do not divide its heads.

    Every rank holds the whole weight, with the name and shape of one process. It computes only the heads that its own
    queries attend to.
    """

    def __init__(self, whole: nn.Linear, config: ModelConfig, mesh: DeviceMesh) -> None:
        super().__init__()
        self.weight = _distributed(whole.weight, mesh, Replicate())
        self.bias = None if whole.bias is None else _distributed(whole.bias, mesh, Replicate())
        self.d_head = config.d_head
        heads = key_value_heads(config, rank=mesh.get_local_rank(), tensor=mesh.size())
        first, last = heads[0], heads[-1]
        self.rows = slice(first * self.d_head, (last + 1) * self.d_head)  # of the weight
        self.repeats = [heads.count(head) for head in range(first, last + 1)]
        self.product: Product = nn.functional.linear

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, m * d_head) from (b, t, d). This rank's queries share the m heads evenly."""
        bias = None if self.bias is None else self.bias[self.rows]
        return self.repeated(self.product(x, self.weight[self.rows], bias))

    def repeated(self, y: Tensor) -> Tensor:
        """The heads of `rows` as this rank's queries need them; see repeat_heads."""
        return repeat_heads(y, self.repeats, self.d_head)


def repeat_heads(y: Tensor, repeats: list[int], d_head: int) -> Tensor:
    """Give each query of a rank its head if its heads (b, t, m * d_head) serve unequal numbers of queries.

    The model can only repeat all heads equally often.
    """
    if len(set(repeats)) == 1:
        return y
    heads = y.view(*y.shape[:2], -1, d_head)  # (b, t, m, d_head)
    return torch.cat(
        [heads[:, :, i : i + 1].expand(-1, -1, times, -1) for i, times in enumerate(repeats)], dim=2
    ).flatten(2)


def key_value_heads(config: ModelConfig, *, rank: int, tensor: int) -> list[int]:
    """The key-value head of each query head of a tensor rank, rising."""
    queries = config.n_heads // tensor
    group = config.n_heads // config.kv_heads
    return [query // group for query in range(rank * queries, (rank + 1) * queries)]


# Of parameters that every rank holds whole, those that work before a sum over ranks, by their canonical names.
_BEFORE_SUMS = re.compile(r"\.(attention\.[qkv]|mlp\.(gate|up))\.|\.(attention\.out|mlp\.down)\.bias$")


def gives_partial_gradient(name: str, *, splits_sequence: bool) -> bool:
    """Whether the gradient of a parameter that every tensor rank holds whole is a part of a sum over them.

    With the sequence in shares, each gradient is. Else a rank computes norms, positions and heads over the whole
    sequence, as all do, and has their whole gradients, which are averaged.
    """
    return splits_sequence or _BEFORE_SUMS.search(name) is not None


def apply_tensor_parallel(model: GPT, config: ModelConfig, mesh: DeviceMesh, ranks: TensorRanks) -> None:
    """Shard a model's parameters over `mesh` in place, while they are on the meta device. Moves no data.

    `ranks`: those of `mesh`, as `tensor_ranks` gives them. The model then runs only under FSDP, which replaces
    its parameters by their local tensors.
    """
    for block in model.blocks.values():
        assert isinstance(block, Block)
        _shard_block(block, config, mesh, ranks)
    gather_inputs(model, ranks)
    if isinstance(model.embed, Embedding):
        setattr(model.embed, "tokens", VocabularyEmbedding(model.embed.tokens, mesh, ranks))  # noqa: B010  another type
        if model.embed.positions is not None:  # they come whole, and each rank looks up those of its share
            _distribute(model.embed.positions, mesh, Replicate())
            model.embed.positions.register_forward_pre_hook(lambda module, inputs: (ranks.held_of(inputs[0]),))
    elif model.embed is not None:  # another front runs whole on every rank, which keeps its share of the sequence
        _distribute(model.embed, mesh, Replicate())
        model.embed.register_forward_hook(lambda module, inputs, output: ranks.held_of(output))
    if model.norm is not None:
        _distribute(model.norm, mesh, Replicate())
    if model.head is not None:
        _distribute(model.head, mesh, Shard(0) if model.predicts_tokens else Replicate())
    model.tie()


def _shard_block(block: Block, config: ModelConfig, mesh: DeviceMesh, ranks: TensorRanks) -> None:
    attention: Any = block.attention
    mlp: Any = block.mlp
    for norm in (block.attention_norm, block.mlp_norm):
        _distribute(norm, mesh, Replicate())
        # RMSNorm reads its input twice: add up both gradients before the residual's, as 0.1 did, to resume bit-exactly.
        norm.register_forward_pre_hook(lambda module, inputs: (inputs[0].view_as(inputs[0]),))
    for part in ("q", "k", "v"):
        if part != "q" and config.kv_heads % ranks.size:
            setattr(attention, part, KeyValueProjection(getattr(attention, part), config, mesh))
        else:
            _distribute(getattr(attention, part), mesh, Shard(0))
    for part in ("gate", "up"):
        if hasattr(mlp, part):
            _distribute(getattr(mlp, part), mesh, Shard(0))
    attention.out, mlp.down = RowLinear(attention.out, mesh, ranks), RowLinear(mlp.down, mesh, ranks)


def _distributed(parameter: Tensor, mesh: DeviceMesh, placement: Placement) -> nn.Parameter:
    return nn.Parameter(distribute_tensor(parameter.detach(), mesh, [placement], src_data_rank=None))


def _distribute(module: nn.Module, mesh: DeviceMesh, placement: Placement) -> None:
    """Replace all parameters of a module by DTensors."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            part.register_parameter(name, _distributed(parameter, mesh, placement))


def allow_asynchronous(mesh: DeviceMesh) -> None:
    """Let the compiler overlap the communication of tensor ranks with matrix products. All of them must call it.

    Only useful on CUDA. torch 2.13 deprecates the function, but the compiler's pass checks a record that only it makes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        enable_symm_mem_for_group(mesh.get_group().group_name)


def sharded_head_outputs(head: nn.Module, hidden: Tensor, ranks: TensorRanks, keys: Tensor | None = None) -> Any:
    """The input of a loss from a head on several tensor ranks; see gpt.model.heads.head_outputs.

    `hidden` (b, t/tp, d) and `keys` (b, t/tp): this rank's share. A vocabulary head all-gathers it and reduce-scatters
    its gradient; other heads, which every rank holds whole, run on each rank's share and all-gather their output,
    (b, t, k).
    """
    if isinstance(head, VocabularyHead):
        shard = vocabulary_shard(head.out_features, head.vocab_size, group_named(ranks.group))
        # Schedules that split backward run the loss's twice, and it keeps its gradient in between.
        whole = ranks.gathered(hidden, keeps_gradient=ranks.splits_backward)
        return VocabularyOutputs(whole, head.weight, shard)
    return ranks.collected(run_head(head, hidden, keys))


def vocabulary_shard(rows: int, vocab_size: int, group: dist.ProcessGroup) -> VocabShard:
    """Of the `rows` of a head, those that this tensor rank holds, and the reductions over all holders.

    `vocab_size`: without padding. `group`: the tensor ranks.
    """

    def reduced(x: Tensor, op: dist.ReduceOp.RedOpType) -> Tensor:
        dist.all_reduce(x, op=op, group=group)
        return x

    max_rows = -(-rows // dist.get_world_size(group))  # the last ranks may hold fewer
    return VocabShard(
        start=dist.get_rank(group) * max_rows,
        vocab_size=vocab_size,
        max_rows=max_rows,
        reduce_sum=lambda x: reduced(x, dist.ReduceOp.SUM),
        reduce_max=lambda x: reduced(x, dist.ReduceOp.MAX),
    )
