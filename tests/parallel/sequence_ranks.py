"""Ranks that exchange a sequence and its gradients; test_sequence_shards.py starts them."""

from functools import partial
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
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("tp",))
    ranks = tensor_ranks(mesh, splits_sequence=True, splits_backward=False)
    found = {}
    for prefix, way in (("", ranks), ("whole, ", tensor_ranks(mesh, splits_sequence=False, splits_backward=False))):
        for sequences in (1, 2):
            found |= {f"{prefix}{name} {sequences}": pair for name, pair in results_of(way, sequences).items()}
        watched = Operators()
        with watched, torch.no_grad():
            found[f"{prefix}watched"] = way.reduced(inputs(size, rank, 2)[0])
        found[f"{prefix}operators"] = sorted(watched.names)
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


def results_of(ranks, sequences):
    """By function: the output, and the gradient of the input."""
    found = {}
    ways = {"gathered": ranks.gathered, "collected": ranks.collected, "reduced": ranks.reduced}
    ways["kept"] = partial(ranks.gathered, keeps_gradient=True)
    for name, way in ways.items():
        whole, weights = inputs(ranks.size, ranks.rank, sequences)
        x = (whole if name == "reduced" else ranks.held_of(whole)).requires_grad_()
        y = way(x * 1)
        grad = weights[:, : y.size(1)].contiguous()
        y.backward(grad)
        found[name] = y.detach(), x.grad
        if name == "kept":
            assert torch.equal(grad, weights[:, : y.size(1)])
    return found


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
