"""Two tensor ranks that hold fp8 products in parts; axes/test_fp8.py starts them."""

from pathlib import Path

import torch
import torch.distributed as dist

from parallel.axes.fp8 import Fp8Product

OUTLIER = 1024.0  # in the second rank's part alone; with its scale all elements of the first rank round to 0


def product_in_parts(rank, folder):
    """Save this rank's y, and gradients w.r.t. x and the weight, of a product split by rows and of one by columns."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    group, found = dist.group.WORLD.group_name, {}
    for way, product in (
        ("rows", Fp8Product(group, splits_weight=True, splits_grad=True)),
        ("columns", Fp8Product(group, splits_x=True, splits_weight=True)),
    ):
        x, weight, grad = part_of(way, rank)
        y = product(x.requires_grad_(), weight.requires_grad_())
        y.backward(grad)
        found[way] = (y.detach(), x.grad, weight.grad)
    torch.save(found, Path(folder, f"rank{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


def whole(way):
    """x (n, k), weight (o, k) and the gradient w.r.t. y (n, o), all bf16."""
    generator = torch.Generator().manual_seed(1)
    x, weight, grad = (torch.randn(shape, generator=generator).bfloat16() for shape in ((16, 64), (32, 64), (16, 32)))
    if way == "rows":
        weight, grad = weight * 1e-3, grad * 1e-8
        weight[-1, 0] = grad[0, -1] = OUTLIER
    else:
        x, weight = x * 1e-3, weight * 1e-3
        weight[0, -1] = x[0, -1] = OUTLIER
    return x, weight, grad


def part_of(way, rank):
    """This rank's part: rows of the weight with columns of y, or columns of the weight and of x."""
    x, weight, grad = whole(way)
    if way == "rows":
        return x.clone(), weight.chunk(2)[rank].clone(), grad.chunk(2, dim=1)[rank].contiguous()
    return x.chunk(2, dim=1)[rank].contiguous(), weight.chunk(2, dim=1)[rank].contiguous(), grad.clone()
