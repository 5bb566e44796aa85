"""Tensor parallelism with sequence parallelism: one table of DTensor styles over an unchanged model.

Between blocks each rank holds its share of the sequence, (b, t/tp, d); inside attention and MLP its share of the
heads and the hidden width over the whole sequence (Megatron-LM's scheme, arXiv 2205.05198, section 4.2): an all-gather
before and a reduce-scatter after each.
"""

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from gpt.loss import Loss, LossTotals, VocabShard
from gpt.model import GPT


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
    """How the two ends of the model are sharded: vocabulary rows over ranks, learned positions kept whole."""
    return {
        "embed.tokens": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "embed.positions": SequenceParallel(use_local_output=True),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }


def apply_tensor_parallel(model: GPT, mesh: DeviceMesh) -> None:
    """Shard a model's parameters over `mesh` in place. Moves no data: call it while they are on the meta device."""
    plan = end_plan()
    for name in model.blocks:
        plan |= {f"blocks.{name}.{part}": style for part, style in block_plan().items()}
    held = {name for name, module in model.named_modules(remove_duplicate=False) if module is not None}
    if "embed.positions" in held:  # positions come whole; each rank looks up its share of the sequence
        share = PrepareModuleInput(input_layouts=(Replicate(),), desired_input_layouts=(Shard(1),))
        parallelize_module(model, mesh, {"embed.positions": share}, src_data_rank=None)
    parallelize_module(model, mesh, {name: plan[name] for name in plan if name in held}, src_data_rank=None)
    model.tie()


def vocabulary_parallel_loss(
    loss: Loss, head: nn.Linear, hidden: Tensor, targets: Tensor, vocab_size: int
) -> LossTotals:
    """The loss of a head whose vocabulary rows lie on several tensor ranks; the same on each of them.

    `hidden`: DTensor (b, t, d) sharded over the sequence. All-gathers it, reduce-scatters its gradient.
    """
    assert isinstance(hidden, DTensor)
    assert isinstance(head.weight, DTensor)
    mesh = hidden.device_mesh
    group = mesh.get_group()
    whole = hidden.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])  # (b, t, d)
    weight = head.weight.to_local()  # (v/tp, d)

    def reduced(x: Tensor, op: dist.ReduceOp.RedOpType) -> Tensor:
        dist.all_reduce(x, op=op, group=group)
        return x

    shard = VocabShard(
        start=mesh.get_local_rank() * weight.size(0),
        vocab_size=vocab_size,
        reduce_sum=lambda x: reduced(x, dist.ReduceOp.SUM),
        reduce_max=lambda x: reduced(x, dist.ReduceOp.MAX),
    )
    return loss(whole, weight, targets, shard)
