"""Tensor parallelism with sequence parallelism: one table of DTensor styles over an unchanged model.

Between blocks each rank holds its share of the sequence, (b, t/tp, d); inside attention and MLP its share of the
heads and the hidden width over the whole sequence (Megatron-LM's scheme, arXiv 2205.05198, section 4.2): an all-gather
before and a reduce-scatter after each.

Key-value heads that tensor ranks cannot divide evenly (2 of them on 4 ranks) are copied, as in Megatron-LM: see
KeyValueProjection.
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
    """The token embedding with its rows shared out over tensor ranks. Each looks up the tokens whose rows it has; a
    reduce-scatter adds up and gives each rank its share of the sequence. All-gathers the gradient.

    With DTensor's own style every rank builds the gradient of all rows in backward (torch 2.13 has no rule for shards).
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
        here = tokens - self.start
        held = (here >= 0) & (here < weight.size(0))
        x = nn.functional.embedding(here.where(held, 0), weight).where(held.unsqueeze(-1), 0.0)  # (b, t, d)
        share: Tensor = DTensor.from_local(x, self.mesh, [Partial()]).redistribute(placements=[Shard(1)]).to_local()
        return share


class KeyValueProjection(nn.Module):
    """The key or value projection where tensor ranks do not divide its heads. Every rank holds the weight whole, under
    the name and shape of one process, and computes only the heads that its own queries look at.

    A rank's gradient is a partial sum, which FSDP adds up over tensor ranks (an all-reduce of the weight's size) before
    it reduces over data ranks: all copies get the same bits.
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
        """(b, t, m * d_head) from a replicated DTensor (b, t, d): the m heads that this rank's queries share evenly."""
        assert isinstance(x, DTensor)
        rows = slice(self.first * self.d_head, (self.last + 1) * self.d_head)
        weight, bias = _partial(self.weight)[rows], None if self.bias is None else _partial(self.bias)[rows]
        y = nn.functional.linear(_partial(x), weight, bias)  # (b, t, m * d_head)
        if len(set(self.repeats)) == 1:
            return y
        heads = y.view(*y.shape[:2], -1, self.d_head)  # (b, t, m, d_head)
        return torch.cat(  # one for each query: the model repeats all heads equally often or not at all
            [heads[:, :, i : i + 1].expand(-1, -1, times, -1) for i, times in enumerate(self.repeats)], dim=2
        ).flatten(2)


def key_value_heads(config: ModelConfig, *, rank: int, tensor: int) -> list[int]:
    """The key-value head of each query head of a tensor rank, rising."""
    queries = config.n_heads // tensor
    group = config.n_heads // config.kv_heads
    return [query // group for query in range(rank * queries, (rank + 1) * queries)]


def _replicated(parameter: Tensor, mesh: DeviceMesh) -> nn.Parameter:
    return nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Replicate()], src_data_rank=None))


def _partial(x: Tensor) -> Tensor:
    """A replicated tensor as a plain one, of which each rank's gradient is a partial sum."""
    assert isinstance(x, DTensor)
    return x.to_local(grad_placements=[Partial()])


def block_plan() -> dict[str, ParallelStyle]:
    """How the parts of one block are sharded."""
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
    """How the two ends of the model are sharded: positions kept whole, the head's rows over ranks."""
    return {
        "embed.positions": SequenceParallel(use_local_output=True),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }


def apply_tensor_parallel(model: GPT, config: ModelConfig, mesh: DeviceMesh) -> None:
    """Shard a model's parameters over `mesh` in place. Moves no data: call it while they are on the meta device."""
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
    """Have every tensor rank hold all parameters of a module, as DTensors whose gradients are summed correctly."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            part.register_parameter(name, _replicated(parameter, mesh))


def _replicate_front(front: nn.Module, mesh: DeviceMesh) -> None:
    """Run a model's own front whole on every tensor rank; each keeps its share of the sequence, (b, t/tp, d)."""
    _replicate_parameters(front, mesh)

    def whole(module: nn.Module, inputs: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        return tuple(x if x is None else DTensor.from_local(x, mesh, [Replicate()], run_check=False) for x in inputs)

    def share(module: nn.Module, inputs: Any, output: DTensor) -> Tensor:
        return output.redistribute(placements=[Shard(1)]).to_local()

    front.register_forward_pre_hook(whole)
    front.register_forward_hook(share)


def _wait(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """Wait for the reduce-scatter that gives the embedding's output, where no addition of positions did: torch's
    compiler (2.13) takes a tensor still under way for a type of its own and gives wrong gradients after it."""
    return output.clone() if isinstance(output, AsyncCollectiveTensor) else output


def allow_asynchronous(mesh: DeviceMesh) -> None:
    """Give the compiler leave to join tensor ranks' messages with products. Called by all of them; needs CUDA to be of
    use. torch 2.13 calls the function superfluous, but its compiler's pass asks for what only it enters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        enable_symm_mem_for_group(mesh.get_group().group_name)


def sharded_head_outputs(head: nn.Module, hidden: DTensor) -> Any:
    """What a loss takes of a head whose parameters or inputs lie on several tensor ranks; see gpt.model.heads.

    `hidden` (b, t, d) is sharded over the sequence. A vocabulary head all-gathers it and reduce-scatters its gradient;
    other heads, which every rank holds whole, run on each rank's share and all-gather their output.
    """
    if isinstance(head, VocabularyHead):
        assert isinstance(head.weight, DTensor)
        whole = hidden.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])  # (b, t, d)
        return VocabularyOutputs(whole, head.weight.to_local(), vocabulary_shard(head, head.vocab_size))
    outputs = head(hidden)
    assert isinstance(outputs, DTensor)
    return outputs.redistribute(placements=[Replicate()]).to_local()  # (b, t, k)


def vocabulary_shard(head: nn.Linear, vocab_size: int) -> VocabShard:
    """Which rows of a head this tensor rank holds, and how all of them add up; of an unpadded vocabulary's size."""
    assert isinstance(head.weight, DTensor)
    mesh = head.weight.device_mesh
    group = mesh.get_group()

    def reduced(x: Tensor, op: dist.ReduceOp.RedOpType) -> Tensor:
        dist.all_reduce(x, op=op, group=group)
        return x

    max_rows = -(-head.weight.size(0) // mesh.size())  # the last ranks may hold fewer
    return VocabShard(
        start=mesh.get_local_rank() * max_rows,
        vocab_size=vocab_size,
        max_rows=max_rows,
        reduce_sum=lambda x: reduced(x, dist.ReduceOp.SUM),
        reduce_max=lambda x: reduced(x, dist.ReduceOp.MAX),
    )
