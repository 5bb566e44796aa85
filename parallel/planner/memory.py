"""Follows how many bytes of tensors a rank holds while its code runs on fake tensors; allocates nothing itself."""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.utils._python_dispatch import TorchDispatchMode

from parallel.axes.gradients import local


class MemoryTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While entered (through `tracking`), adds up the storages that operations make and drops those that die.

    `peak_bytes` is the most that was held at once, with what `held` names; `peak_activation_bytes` the most without
    it, without weights that FSDP gathered and without gradients: saved and passing tensors, and buffers of
    communication. Caching and fragmentation of an allocator come on top.
    """

    def __init__(self, stages: Iterable[nn.Module], held: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.wrapped = [module for stage in stages for module in stage.modules() if isinstance(module, FSDPModule)]
        self.sizes: dict[int, int] = {}  # bytes of each live storage, by id, which is its own for as long as it lives
        self.weights: set[int] = set()  # of these, gathered weights and gradients, as far as found
        self.watched: dict[int, weakref.ref[Any]] = {}
        self.weights_bytes = 0
        self.looks_away = False
        self.stale = True  # whether weights or gradients may have been made since they were last looked for
        self.held_bytes = sum(nbytes for _, nbytes in {_storage_size(tensor) for tensor in held})
        self.ignored = {id(local(tensor).untyped_storage()) for tensor in held}
        self.live_bytes = 0
        self.peak_bytes = self.held_bytes
        self.peak_activation_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented
        result = func(*args, **(kwargs or {}))
        if self.looks_away:
            return result
        in_backward = torch._C._current_graph_task_id() != -1
        makes_some = in_backward or func.namespace == "fsdp" or func is torch.ops.aten.empty.memory_format
        self.stale |= makes_some  # FSDP gathers into what empty made, on one data rank by no operator of its own
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, FakeTensor):
                self._add(tensor.untyped_storage())
        if self.live_bytes - self.weights_bytes > self.peak_activation_bytes:
            self._look_closer()
            self.stale = makes_some  # what this made is put into its place only after
        self.peak_bytes = max(self.peak_bytes, self.held_bytes + self.live_bytes)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self.watched or key in self.ignored:
            return
        self.watched[key] = weakref.ref(storage, lambda _: self._drop(key))
        self.sizes[key] = storage.nbytes()
        self.live_bytes += storage.nbytes()

    def _drop(self, key: int) -> None:
        self.resize(key, 0)
        del self.watched[key], self.sizes[key]
        self.weights.discard(key)

    def resize(self, key: int, nbytes: int) -> None:
        """A storage has another size now: FSDP frees gathered weights by giving theirs none."""
        if key in self.sizes:
            change = nbytes - self.sizes[key]
            self.sizes[key] = nbytes
            self.live_bytes += change
            if key in self.weights:
                self.weights_bytes += change

    def _look_closer(self) -> None:
        """Find weights and gradients among what is live, since what was made may be one, and take the new peak."""
        if self.stale:
            self.weights = {id(s) for s in self._weights_and_gradients()} & self.sizes.keys()
            self.weights_bytes = sum(self.sizes[key] for key in self.weights)
        self.peak_activation_bytes = max(self.peak_activation_bytes, self.live_bytes - self.weights_bytes)

    def _weights_and_gradients(self) -> Iterator[torch.UntypedStorage]:
        """Storages of FSDP's gathered weights, and of gradients before and after they are reduced."""
        for module in self.wrapped:
            groups = module._get_fsdp_state()._fsdp_param_groups
            for parameter in (parameter for group in groups for parameter in group.fsdp_params):
                tensors = [*parameter.all_gather_outputs, parameter.unsharded_accumulated_grad]
                tensors += [parameter.sharded_param.grad]
                if hasattr(parameter, "_unsharded_param"):  # which exists from the first gathering on
                    tensors.append(parameter._unsharded_param.grad)
                yield from (local(tensor).untyped_storage() for tensor in tensors if tensor is not None)


@contextmanager
def tracking(tracker: MemoryTracker) -> Iterator[MemoryTracker]:
    """Enter the tracker. Tell it of storages that are resized, which no operation shows; and to look away while DTensor
    works out shapes, for which it runs operations on whole tensors that no rank has."""
    resize = torch.UntypedStorage.resize_
    work_out_shapes = ShardingPropagator._propagate_tensor_meta_non_cached

    def noted(storage: torch.UntypedStorage, size: int) -> Any:
        result = resize(storage, size)
        tracker.resize(id(storage), storage.nbytes())
        return result

    def unseen(self: ShardingPropagator, op_schema: Any) -> Any:
        tracker.looks_away = True
        try:
            return work_out_shapes(self, op_schema)
        finally:
            tracker.looks_away = False

    torch.UntypedStorage.resize_ = noted  # type: ignore[method-assign, assignment]
    ShardingPropagator._propagate_tensor_meta_non_cached = unseen  # type: ignore[method-assign]
    try:
        with tracker:
            yield tracker
    finally:
        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign]
        ShardingPropagator._propagate_tensor_meta_non_cached = work_out_shapes  # type: ignore[method-assign]


def _storage_size(tensor: Tensor) -> tuple[int, int]:
    storage = local(tensor).untyped_storage()
    return id(storage), storage.nbytes()
