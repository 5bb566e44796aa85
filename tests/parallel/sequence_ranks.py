"""Ranks that exchange a sequence and its gradients; test_sequence_shards.py starts them."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode

from parallel.axes.reduce_scatter import sum_chunks
from parallel.axes.sequence_shards import tensor_ranks

LENGTH = 37  # of a chunk: not a multiple of a vector of the processor
PAIR = (0, 2)  # a group that is a part of all ranks


def exchange(rank, size, folder):
    """Save what this rank got: outputs and gradients of each function, eager and compiled."""
    torch.set_num_threads(1)
    size = int(size)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", size), rank=rank, world_size=size)
    ranks = tensor_ranks(init_device_mesh("cpu", (size,), mesh_dim_names=("tp",)))
    found = {}
    for sequences in (1, 2):
        whole, weights = inputs(size, rank, sequences)
        for name, way in (("gathered", ranks.gathered), ("collected", ranks.collected), ("reduced", ranks.reduced)):
            x = (whole if name == "reduced" else ranks.share_of(whole)).requires_grad_()
            y = way(x)
            (y * weights[:, : y.size(1)]).sum().backward()
            found[f"{name} {sequences}"] = (y.detach(), x.grad)
    watched = Operators()
    with watched, torch.no_grad():
        found["watched"] = ranks.reduced(inputs(size, rank, 2)[0])
    found["operators"] = sorted(watched.names)
    pair = dist.new_group(PAIR)
    for kind in (torch.float32, torch.bfloat16):
        found[f"all {kind}"] = torch.empty(LENGTH, dtype=kind)
        sum_chunks(found[f"all {kind}"], chunks(size, rank, kind), None)
        if rank in PAIR:
            ours, of_torch = torch.empty(LENGTH, dtype=kind), torch.empty(LENGTH, dtype=kind)
            sum_chunks(ours, chunks(len(PAIR), rank, kind), pair)
            dist.reduce_scatter_single(of_torch, chunks(len(PAIR), rank, kind), group=pair)
            found[f"pair {kind}"] = ours, of_torch
    torch.save(found, Path(folder, f"rank{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


class Operators(TorchDispatchMode):
    """The names of the operators that ran."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


def chunks(size, rank, kind):
    """A tensor of `size` chunks; it differs by rank."""
    return torch.randn(size * LENGTH, generator=torch.Generator().manual_seed(rank)).to(kind)


def inputs(size, rank, sequences):
    """A sequence (b, t, d), and the gradient (b, t, d) that the output of a rank gets; both differ by rank."""
    generator = torch.Generator().manual_seed(10 * rank + sequences)
    shape = (sequences, 2 * size, 4)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
