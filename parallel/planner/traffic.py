"""Count what a rank communicates while its code runs, on real or fake tensors.

Bytes are those of the whole tensor at one rank: the output of an all-gather, the input of a reduce-scatter or an
all-reduce, the content of a send or a receive. In a ring of n ranks, each rank sends (n - 1)/n of these bytes for an
all-gather or a reduce-scatter, and twice that for an all-reduce.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from parallel.axes.reduce_scatter import reduce_scatter_by_chunks
from parallel.layout.mesh import Mesh

# Operator: its kind, and the index of the argument that holds the whole tensor. torch.distributed (FSDP2, the pipeline
# schedules, the engine) calls `c10d`; DTensor calls `_c10d_functional`. On gloo our reduce-scatter is an all-to-all and
# a local sum (parallel/axes/reduce_scatter.py); nothing else calls all-to-all.
OPERATORS = {
    "c10d::_allgather_base_": ("all-gather", 0),
    "c10d::allgather_into_tensor_coalesced_": ("all-gather", 0),
    "c10d::allgather_": ("all-gather", 0),
    "c10d::_reduce_scatter_base_": ("reduce-scatter", 1),
    "c10d::reduce_scatter_tensor_coalesced_": ("reduce-scatter", 1),
    "c10d::reduce_scatter_": ("reduce-scatter", 1),
    "c10d::allreduce_": ("all-reduce", 0),
    "c10d::allreduce_coalesced_": ("all-reduce", 0),
    "c10d::broadcast_": ("broadcast", 0),
    "c10d::alltoall_base_": ("reduce-scatter", 1),
    "c10d::send": ("send", 0),
    "c10d::recv_": ("receive", 0),
    "c10d::recv_any_source_": ("receive", 0),
    "_c10d_functional::all_gather_into_tensor": ("all-gather", 0),
    "_c10d_functional::all_gather_into_tensor_out": ("all-gather", 0),
    "_c10d_functional::all_gather_into_tensor_coalesced": ("all-gather", 0),
    "_c10d_functional::reduce_scatter_tensor": ("reduce-scatter", 0),
    "_c10d_functional::reduce_scatter_tensor_out": ("reduce-scatter", 0),
    "_c10d_functional::reduce_scatter_tensor_coalesced": ("reduce-scatter", 0),
    "_c10d_functional::all_reduce": ("all-reduce", 0),
    "_c10d_functional::all_reduce_": ("all-reduce", 0),
    "_c10d_functional::all_reduce_coalesced": ("all-reduce", 0),
    "_c10d_functional::all_reduce_coalesced_": ("all-reduce", 0),
    "_c10d_functional::broadcast": ("broadcast", 0),
    "_c10d_functional::broadcast_": ("broadcast", 0),
    "triaxial::reduce_scatter": ("reduce-scatter", 0),
}
CARRY_NO_DATA = (
    "c10d::barrier",
    "c10d::monitored_barrier_",
    "c10d::check_for_nan",
    "_c10d_functional::wait_tensor",
    "_c10d_functional::_wrap_tensor_autograd",
)


@dataclass(frozen=True, order=True)
class CollectiveKind:
    """A kind of communication: along which axis of the layout, which operation, and among how many ranks."""

    axis: str  # tensor, pipeline, data, or all
    kind: str  # all-gather, reduce-scatter, all-reduce, broadcast, send, receive
    ranks: int


@dataclass(frozen=True)
class Traffic:
    """The number of calls, and the bytes of all of them."""

    count: int = 0
    bytes: int = 0


class CollectiveCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the communication of this process in `traffic` while entered.

    Groups of one rank move nothing and are not counted. The integers with which pipeline stages agree on shapes, once
    in a run, are not counted either.
    """

    supports_higher_order_operators = True  # FlexAttention

    def __init__(self, mesh: Mesh) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.axes = axis_of_group(mesh)
        self.traffic: dict[CollectiveKind, Traffic] = defaultdict(Traffic)

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # DTensor first turns it into operations on local tensors, which come here again
        if func.namespace in ("c10d", "_c10d_functional") or func is reduce_scatter_by_chunks._opoverload:
            self._count(func._schema.name, args)
        return func(*args, **(kwargs or {}))

    def _count(self, name: str, args: tuple[Any, ...]) -> None:
        if name in CARRY_NO_DATA:
            return
        assert name in OPERATORS, f"{name}: an operator of communication that is missing in OPERATORS"
        kind, position = OPERATORS[name]
        group = _group(args)
        tensors = [leaf for leaf in tree_leaves(args[position]) if isinstance(leaf, Tensor)]
        if group.size() == 1 or (kind in ("send", "receive") and not tensors[0].is_floating_point()):
            return
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if name.startswith("_c10d_functional::all_gather"):  # its argument is only the shard
            size *= group.size()
        key = CollectiveKind(self.axes.get(group.group_name, "all"), kind, group.size())
        before = self.traffic[key]
        self.traffic[key] = Traffic(before.count + 1, before.bytes + size)


def axis_of_group(mesh: Mesh) -> dict[str, str]:
    """Map the names of this rank's process groups to the axes of the layout.

    An axis over all ranks may share the default group. The few other collectives of that group then count for the axis.
    """
    dimensions = {"pp": "pipeline", "dp_replicate": "data", "dp_shard": "data", "tp": "tensor"}
    groups = [(mesh.whole.get_group(dimension), axis) for dimension, axis in dimensions.items()]
    return {group.group_name: axis for group, axis in groups if group.size() > 1}


def extrapolated(
    few: Mapping[CollectiveKind, Traffic], more: Mapping[CollectiveKind, Traffic], times: int
) -> dict[Any, Traffic]:
    """Return `more` plus `times` times the difference between `more` and `few`."""
    result = {}
    for key in sorted(few.keys() | more.keys()):
        a, b = few.get(key, Traffic()), more.get(key, Traffic())
        result[key] = Traffic(b.count + times * (b.count - a.count), b.bytes + times * (b.bytes - a.bytes))
    return result


def _group(args: tuple[Any, ...]) -> Any:
    """Return the process group among the arguments of an operator, where it is boxed or named."""
    for arg in args:
        if isinstance(arg, torch.ScriptObject):
            try:
                return dist.ProcessGroup.unbox(arg)
            except (RuntimeError, TypeError):
                continue  # reduce operations are boxed too
        if isinstance(arg, dist.ProcessGroup):
            return arg
    names = [arg for arg in args if isinstance(arg, str)]
    resolve: Any = dist.distributed_c10d._resolve_process_group  # type: ignore[attr-defined]
    return resolve(names[-1])  # the last argument: the name of the reduction precedes it
