"""Sum the gradients of a weight tied between two stages; compute the norm of gradients, and scale them."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from parallel.layout.mesh import Mesh


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def sum_tied_gradients(weights: list[nn.Parameter], mesh: Mesh) -> None:
    """Add up the gradients of one tied weight on the first and the last stage, in both.

    `weights`: the copies that this rank holds; with V-shaped stages, both. Only the ranks of these two stages call it.
    They exchange one message each way, of the weight's local size. The sum of two numbers does not depend on their
    order, so the copies stay equal, bit for bit.
    """
    held = [_gradient(weight) for weight in weights]
    if len(held) == 2:
        held[0] += held[1]
        held[1].copy_(held[0])
        return
    mine = held[0].to(mesh.device)  # the same tensor unless gradients are offloaded
    other = torch.empty_like(mine)
    rank = mesh.global_rank_of(mesh.layout.stages - 1 if 0 in mesh.stages else 0)
    for work in dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, mine, rank, mesh.pipeline_group),
            dist.P2POp(dist.irecv, other, rank, mesh.pipeline_group),
        ]
    ):
        work.wait()
    held[0] += other.to(held[0].device)


@torch.no_grad()
def squared_norm(parameters: list[nn.Parameter], mesh: Mesh, *, counted_elsewhere: set[nn.Parameter]) -> Tensor:
    """This rank's part of the squared global gradient norm, float64, 0-d on the device.

    The sum over all ranks counts each element of the model once. float64, because a CPU adds the squares one after the
    other: in fp32 the norm of 38 million numbers was off by 2e-3, and by less when more ranks shared them.
    """
    total = torch.zeros((), dtype=torch.float64, device=mesh.device)
    by_copies: dict[int, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None and parameter not in counted_elsewhere:
            by_copies.setdefault(_copies(parameter, mesh), []).append(local(parameter.grad))
    for copies, gradients in by_copies.items():
        norms = torch.stack(torch._foreach_norm(gradients, 2, dtype=torch.float64))  # type: ignore[attr-defined]
        total += norms.square().sum().to(mesh.device) / copies
    return total


@torch.no_grad()
def scale_gradients(parameters: list[nn.Parameter], factor: float) -> None:
    """Multiply all gradients in place."""
    gradients = [local(p.grad) for p in parameters if p.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor)  # type: ignore[attr-defined]


def _gradient(weight: nn.Parameter) -> Tensor:
    assert weight.grad is not None
    return local(weight.grad)


def _copies(parameter: nn.Parameter, mesh: Mesh) -> int:
    """The number of ranks of this stage that hold each element of a parameter."""
    layout = mesh.layout
    if not isinstance(parameter, DTensor):
        return layout.tensor * layout.data
    held = parameter.device_mesh
    copies = layout.tensor * layout.data // held.size()
    for axis, placement in enumerate(parameter.placements):
        if placement.is_replicate():
            copies *= held.size(axis)
    return copies
