"""Tensor parallelism with sequence parallelism: one table of DTensor styles over an unchanged model.

Megatron-LM's scheme (arXiv 2205.05198, section 4.2). Between blocks each rank holds its share of the sequence,
(b, t/tp, d). Inside attention and MLP it holds its share of the heads and of the hidden width, over the whole sequence.
An all-gather precedes each, and a reduce-scatter follows it.

If tensor ranks do not divide the key-value heads evenly (2 heads on 4 ranks), the heads are copied, as in Megatron-LM:
see KeyValueProjection.
"""

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed._symmetric_memory import enable_symm_mem_for_group
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from gpt.losses.base import VocabShard, VocabularyOutputs
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT, Attention, Embedding
from gpt.model.heads import VocabularyHead


class VocabularyEmbedding(nn.Module):
    """The token embedding, its rows sharded over tensor ranks.

    Each rank looks up the tokens whose rows it has. A reduce-scatter adds the results up and gives each rank its share
    of the sequence; backward all-gathers the gradient. DTensor's own style would build the gradient of all rows on
    every rank (torch 2.13 has no rule for shards).
    """

    def __init__(self, whole: nn.Embedding, mesh: DeviceMesh) -> None:
        super().__init__()
        shard = distribute_tensor(whole.weight.detach(), mesh, [Shard(0)], src_data_rank=None)
        self.weight = nn.Parameter(shard)
        self.mesh = mesh
        self.start = mesh.get_local_rank() * -(-whole.num_embeddings // mesh.size())  # the last ranks may hold fewer

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, t/tp, d) from ids (b, t), the same on all tensor ranks."""
        assert isinstance(self.weight, DTensor)
        weight = self.weight.to_local()  # (v/tp, d)
        x = look_up_shard(tokens, weight, start=self.start)  # (b, t, d)
        share: Tensor = DTensor.from_local(x, self.mesh, [Partial()]).redistribute(placements=[Shard(1)]).to_local()
        return share


def look_up_shard(tokens: Tensor, weight: Tensor, *, start: int) -> Tensor:
    """The rows (b, t, d) of ids (b, t), and zeros for ids outside the rows `start` to `start + len(weight)`."""
    here = tokens - start
    held = (here >= 0) & (here < weight.size(0))
    return nn.functional.embedding(here.where(held, 0), weight).where(held.unsqueeze(-1), 0.0)


class KeyValueProjection(nn.Module):
    """The key or value projection if tensor ranks do not divide its heads.

    Every rank holds the whole weight, with the name and shape of one process. It computes only the heads that its own
    queries attend to. A rank's gradient is a partial sum. FSDP adds it up over tensor ranks (an all-reduce of the
    weight's size) before it reduces over data ranks, so all copies get the same bits.
    """

    def __init__(self, whole: nn.Linear, config: ModelConfig, mesh: DeviceMesh) -> None:
        super().__init__()
        self.weight = _replicated(whole.weight, mesh)
        self.bias = None if whole.bias is None else _replicated(whole.bias, mesh)
        self.d_head = config.d_head
        heads = key_value_heads(config, rank=mesh.get_local_rank(), tensor=mesh.size())
        self.first, self.last = heads[0], heads[-1]
        self.repeats = [heads.count(head) for head in range(self.first, self.last + 1)]

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, m * d_head) from a replicated DTensor (b, t, d). This rank's queries share the m heads evenly."""
        assert isinstance(x, DTensor)
        rows = slice(self.first * self.d_head, (self.last + 1) * self.d_head)
        weight, bias = _partial(self.weight)[rows], None if self.bias is None else _partial(self.bias)[rows]
        y = nn.functional.linear(_partial(x), weight, bias)  # (b, t, m * d_head)
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


def _replicated(parameter: Tensor, mesh: DeviceMesh) -> nn.Parameter:
    return nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Replicate()], src_data_rank=None))


def _partial(x: Tensor) -> Tensor:
    """A replicated DTensor as a plain tensor. The gradient of each rank is a partial sum."""
    assert isinstance(x, DTensor)
    return x.to_local(grad_placements=[Partial()])


def block_plan() -> dict[str, ParallelStyle]:
    """The sharding style of each part of a block."""
    return {
        "attention_norm": SequenceParallel(),
        "attention": PrepareModuleInput(
            input_layouts=(Shard(1), None, None, None), desired_input_layouts=(Replicate(), None, None, None)
        ),
        "attention.q": ColwiseParallel(),
        "attention.k": ColwiseParallel(),
        "attention.v": ColwiseParallel(),
        "attention.out": RowwiseParallel(output_layouts=Shard(1)),
        "mlp_norm": SequenceParallel(),
        "mlp": PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)),
        "mlp.gate": ColwiseParallel(),
        "mlp.up": ColwiseParallel(),
        "mlp.down": RowwiseParallel(output_layouts=Shard(1)),
    }


def end_plan() -> dict[str, ParallelStyle]:
    """The sharding style of the model's two ends: positions stay whole, the head's rows are sharded."""
    return {
        "embed.positions": SequenceParallel(use_local_output=True),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }


def apply_tensor_parallel(model: GPT, config: ModelConfig, mesh: DeviceMesh) -> None:
    """Shard a model's parameters over `mesh` in place, while they are on the meta device. Moves no data."""
    plan = end_plan()
    if not model.predicts_tokens:
        del plan["head"]
    parts = block_plan()
    if config.kv_heads % mesh.size():
        del parts["attention.k"], parts["attention.v"]
        for attention in [module for module in model.modules() if isinstance(module, Attention)]:
            for part in ("k", "v"):
                setattr(attention, part, KeyValueProjection(getattr(attention, part), config, mesh))
    for name in model.blocks:
        plan |= {f"blocks.{name}.{part}": style for part, style in parts.items()}
    held = {name for name, module in model.named_modules(remove_duplicate=False) if module is not None}
    if "embed.positions" in held:  # positions come whole; each rank looks up its share of the sequence
        share = PrepareModuleInput(input_layouts=(Replicate(),), desired_input_layouts=(Shard(1),))
        parallelize_module(model, mesh, {"embed.positions": share}, src_data_rank=None)
    parallelize_module(model, mesh, {name: plan[name] for name in plan if name in held}, src_data_rank=None)
    if isinstance(model.embed, Embedding):
        setattr(model.embed, "tokens", VocabularyEmbedding(model.embed.tokens, mesh))  # noqa: B010  another type
        model.embed.register_forward_hook(_wait)
    elif model.embed is not None:
        _replicate_front(model.embed, mesh)
    if model.head is not None and not model.predicts_tokens:
        _replicate_parameters(model.head, mesh)
    model.tie()


def _replicate_parameters(module: nn.Module, mesh: DeviceMesh) -> None:
    """Replicate the parameters of a module on all tensor ranks, as DTensors whose gradients are added up."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            part.register_parameter(name, _replicated(parameter, mesh))


def _replicate_front(front: nn.Module, mesh: DeviceMesh) -> None:
    """Run a front other than `Embedding` whole on every tensor rank. A rank keeps its share of the sequence,
    (b, t/tp, d)."""
    _replicate_parameters(front, mesh)

    def whole(module: nn.Module, inputs: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        return tuple(x if x is None else DTensor.from_local(x, mesh, [Replicate()], run_check=False) for x in inputs)

    def share(module: nn.Module, inputs: Any, output: DTensor) -> Tensor:
        return output.redistribute(placements=[Shard(1)]).to_local()

    front.register_forward_pre_hook(whole)
    front.register_forward_hook(share)


def _wait(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """Wait for the reduce-scatter of the embedding, if no addition of positions has waited for it.

    torch 2.13's compiler treats an unfinished tensor as a type of its own, and its gradients are wrong.
    """
    return output.clone() if isinstance(output, AsyncCollectiveTensor) else output


def allow_asynchronous(mesh: DeviceMesh) -> None:
    """Let the compiler overlap the communication of tensor ranks with matrix products. All of them must call it.

    Only useful on CUDA. torch 2.13 deprecates the function, but the compiler's pass checks a record that only it makes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        enable_symm_mem_for_group(mesh.get_group().group_name)


def sharded_head_outputs(head: nn.Module, hidden: DTensor) -> Any:
    """The input of a loss from a head on several tensor ranks; see gpt.model.heads.head_outputs.

    `hidden` (b, t, d) is sharded over the sequence. A vocabulary head all-gathers it and reduce-scatters its gradient;
    other heads, which every rank holds whole, run on each rank's share and all-gather their output.
    """
    if isinstance(head, VocabularyHead):
        assert isinstance(head.weight, DTensor)
        whole = hidden.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])  # (b, t, d)
        shard = vocabulary_shard(head.weight.size(0), head.vocab_size, head.weight.device_mesh)
        return VocabularyOutputs(whole, head.weight.to_local(), shard)
    outputs = head(hidden)
    assert isinstance(outputs, DTensor)
    return outputs.redistribute(placements=[Replicate()]).to_local()  # (b, t, k)


def vocabulary_shard(rows: int, vocab_size: int, mesh: DeviceMesh) -> VocabShard:
    """Of the `rows` of a head, those that this tensor rank holds, and the reductions over all holders.

    `vocab_size`: without padding.
    """
    group = mesh.get_group()

    def reduced(x: Tensor, op: dist.ReduceOp.RedOpType) -> Tensor:
        dist.all_reduce(x, op=op, group=group)
        return x

    max_rows = -(-rows // mesh.size())  # the last ranks may hold fewer
    return VocabShard(
        start=mesh.get_local_rank() * max_rows,
        vocab_size=vocab_size,
        max_rows=max_rows,
        reduce_sum=lambda x: reduced(x, dist.ReduceOp.SUM),
        reduce_max=lambda x: reduced(x, dist.ReduceOp.MAX),
    )
