"""Sum the gradients of tied weights and of those that tensor ranks hold whole; the norm of gradients, their scale."""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from parallel.axes.tensor_parallel import gives_partial_gradient
from parallel.layout.mesh import Mesh


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """The tensor that the ranks of a stage hold in parts, on the mesh's device. Collective over these ranks.

    A tensor that this rank holds whole may come back itself, not a copy.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    # with offload, shards are in host memory, which NCCL cannot gather
    on_device = tensor.to(tensor.device_mesh.device_type)
    assert isinstance(on_device, DTensor)
    return on_device.full_tensor()


@torch.no_grad()
def sum_tied_gradients(weights: list[nn.Parameter], mesh: Mesh) -> None:
    """Add up the gradients of one tied weight on the first and the last stage, in both.

    `weights`: the copies that this rank holds; with V-shaped stages, both. Only the ranks of these two stages call it.
    They exchange one message each way, of the weight's local size. The sum of two numbers does not depend on their
    order, so the copies stay equal, bit for bit.
    """
    held = [_gradient(weight) for weight in weights]
    held[0] += other_gradient(held, mesh)
    if len(held) == 2:
        held[1].copy_(held[0])


@torch.no_grad()
def sum_partial_gradients(parameters: list[tuple[str, nn.Parameter]], mesh: Mesh, *, splits_sequence: bool) -> None:
    """Combine over tensor ranks the gradients of those parameters, by canonical name, that each of them holds whole.

    Add up those that a rank's layers compute from its share of the sequence or of the heads: see
    parallel.axes.tensor_parallel.gives_partial_gradient. Average the others, which every rank computes whole: a
    backward pass that is not deterministic would give ranks other bits, and their copies would drift apart.

    All tensor ranks must call it, once a step. One all-reduce of fp32 numbers, as many as this rank's shards of these
    gradients have.
    """
    parts: list[Tensor] = []
    copies: list[Tensor] = []
    for name, parameter in parameters:
        if parameter.grad is not None and _held_by_all_tensor_ranks(parameter):
            partial = gives_partial_gradient(name, splits_sequence=splits_sequence)
            (parts if partial else copies).append(_gradient(parameter))
    gradients = [*parts, *copies]
    if not gradients:
        return
    total = torch.cat([each.flatten() for each in gradients]).to(mesh.device)  # offloaded gradients are on the host
    dist.all_reduce(total, group=mesh.tensor.get_group())
    total[sum(part.numel() for part in parts) :] /= mesh.layout.tensor
    for each, combined in zip(gradients, torch.split(total, [each.numel() for each in gradients]), strict=True):
        each.copy_(combined.view_as(each))


def whole_gradients(
    parameters: Sequence[tuple[str, nn.Parameter]], mesh: Mesh, *, tied_copies: list[nn.Parameter], divisor: float
) -> Iterator[tuple[str, Tensor]]:
    """Each trainable parameter's name and gradient, whole, fp32, divided by `divisor`; zeros where it has none.

    `tied_copies`: this rank's copies of a weight tied between two stages, whose sum the first stage's rank yields.
    Changes no gradient. Every rank must iterate to the end. Memory: two whole tensors at a time, and with tied copies
    one more of their local size.
    """
    summed: dict[nn.Parameter, Tensor] = {}
    if tied_copies and tied_copies[0].requires_grad:
        assert tied_copies[0].grad is not None
        summed[tied_copies[0]] = tied_copies[0].grad.clone()
        with torch.no_grad():
            other = other_gradient([_gradient(weight) for weight in tied_copies], mesh)
            local(summed[tied_copies[0]]).add_(other)
    skipped = set(tied_copies[1:] if 0 in mesh.stages else tied_copies)
    for name, parameter in parameters:
        if not parameter.requires_grad or parameter in skipped:
            continue
        gradient = summed.get(parameter, parameter.grad)
        if gradient is None:
            gradient = torch.zeros_like(parameter)
        yield name, whole(gradient.detach()).float() / divisor


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


def other_gradient(held: list[Tensor], mesh: Mesh) -> Tensor:
    """The local gradient of a tied weight's other copy, given those that this rank holds."""
    if len(held) == 2:
        return held[1]
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
    return other.to(held[0].device)


def _gradient(weight: nn.Parameter) -> Tensor:
    assert weight.grad is not None
    return local(weight.grad)


def _held_by_all_tensor_ranks(parameter: nn.Parameter) -> bool:
    assert isinstance(parameter, DTensor)
    names = parameter.device_mesh.mesh_dim_names
    assert names is not None
    return parameter.placements[names.index("tp")].is_replicate()


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
