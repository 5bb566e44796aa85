"""Track how many bytes of tensors a rank holds while its code runs on fake tensors."""

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
    """While entered through `tracking`, adds up the storages that operations create, and subtracts freed ones.

    `peak_bytes` is the most that was held at once, including the tensors in `held`. `peak_activation_bytes` is the most
    without these, without weights that FSDP gathered and without gradients: saved and temporary tensors, and buffers of
    communication. An allocator's cache and fragmentation come on top.
    """

    def __init__(self, stages: Iterable[nn.Module], held: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.wrapped = [module for stage in stages for module in stage.modules() if isinstance(module, FSDPModule)]
        self.sizes: dict[int, int] = {}  # bytes of each live storage, by id, which is unique while it lives
        self.weights: set[int] = set()  # of these, the gathered weights and gradients found so far
        self.watched: dict[int, weakref.ref[Any]] = {}
        self.weights_bytes = 0
        self.paused = False
        self.stale = True  # weights or gradients may have been created since the last search for them
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
        if self.paused:
            return result
        in_backward = torch._C._current_graph_task_id() != -1
        may_create = in_backward or func.namespace == "fsdp" or func is torch.ops.aten.empty.memory_format
        self.stale |= may_create  # FSDP gathers into empty tensors; with one data rank it uses no operator of its own
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, FakeTensor):
                self._add(tensor.untyped_storage())
        if self.live_bytes - self.weights_bytes > self.peak_activation_bytes:
            self._update_peak()
            self.stale = may_create  # FSDP registers the new tensor only after this operation
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
        """Note the new size of a storage. FSDP frees gathered weights by resizing their storages to 0."""
        if key in self.sizes:
            change = nbytes - self.sizes[key]
            self.sizes[key] = nbytes
            self.live_bytes += change
            if key in self.weights:
                self.weights_bytes += change

    def _update_peak(self) -> None:
        """Search for weights and gradients among the live storages if new ones may exist, then update the peak."""
        if self.stale:
            self.weights = {id(s) for s in self._weights_and_gradients()} & self.sizes.keys()
            self.weights_bytes = sum(self.sizes[key] for key in self.weights)
        self.peak_activation_bytes = max(self.peak_activation_bytes, self.live_bytes - self.weights_bytes)

    def _weights_and_gradients(self) -> Iterator[torch.UntypedStorage]:
        """Yield the storages of FSDP's gathered weights, and of gradients before and after their reduction."""
        for module in self.wrapped:
            groups = module._get_fsdp_state()._fsdp_param_groups
            for parameter in (parameter for group in groups for parameter in group.fsdp_params):
                tensors = [*parameter.all_gather_outputs, parameter.unsharded_accumulated_grad]
                tensors += [parameter.sharded_param.grad]
                if hasattr(parameter, "_unsharded_param"):  # exists from the first all-gather on
                    tensors.append(parameter._unsharded_param.grad)
                yield from (local(tensor).untyped_storage() for tensor in tensors if tensor is not None)


@contextmanager
def tracking(tracker: MemoryTracker) -> Iterator[MemoryTracker]:
    """Enter the tracker, and patch torch to inform it.

    It must learn of resized storages, which appear in no operation. It must pause while DTensor infers shapes, for
    which DTensor runs operations on whole tensors that no rank holds.
    """
    resize = torch.UntypedStorage.resize_
    infer_shapes = ShardingPropagator._propagate_tensor_meta_non_cached

    def tracked_resize(storage: torch.UntypedStorage, size: int) -> Any:
        result = resize(storage, size)
        tracker.resize(id(storage), storage.nbytes())
        return result

    def untracked_infer(self: ShardingPropagator, op_schema: Any) -> Any:
        tracker.paused = True
        try:
            return infer_shapes(self, op_schema)
        finally:
            tracker.paused = False

    torch.UntypedStorage.resize_ = tracked_resize  # type: ignore[method-assign, assignment]
    ShardingPropagator._propagate_tensor_meta_non_cached = untracked_infer  # type: ignore[method-assign]
    try:
        with tracker:
            yield tracker
    finally:
        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign]
        ShardingPropagator._propagate_tensor_meta_non_cached = infer_shapes  # type: ignore[method-assign]


def _storage_size(tensor: Tensor) -> tuple[int, int]:
    storage = local(tensor).untyped_storage()
    return id(storage), storage.nbytes()
