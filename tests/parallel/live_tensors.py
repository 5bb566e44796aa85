"""For tests: count what is alive while an engine trains: micro-batches, storages, and the peak of their bytes."""

import weakref

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class LiveMicroBatches:
    """Counts the micro-batches of which autograd still holds something, by the lifetime of what it saved, in all stages
    of this rank together."""

    def __init__(self, engine):
        self.saved = {}  # (stage, micro-batch) -> number of saved tensors
        self.started = dict.fromkeys(engine.mesh.stages, 0)
        self.peak = 0
        for index, stage in zip(engine.mesh.stages, engine.stages, strict=True):
            self.watch(index, stage)

    def watch(self, index, stage):
        forward = stage.forward

        def watched(*args, **kwargs):
            key = (index, self.started[index])
            self.started[index] += 1
            with torch.autograd.graph.saved_tensors_hooks(lambda x: self.hold(key, x), lambda held: held.tensor):
                return forward(*args, **kwargs)

        stage.forward = watched

    def hold(self, key, tensor):
        held = Held(tensor.detach())  # with its graph, it would hold the node that holds it
        self.saved[key] = self.saved.get(key, 0) + 1
        weakref.finalize(held, self.free, key)
        self.peak = max(self.peak, len(self.saved))
        return held

    def free(self, key):
        self.saved[key] -= 1
        if self.saved[key] == 0:
            del self.saved[key]


class GatheredBlocks:
    """Notes, whenever one of this rank's stages starts a forward pass, how many of its blocks FSDP holds gathered."""

    def __init__(self, engine):
        self.counts = []
        for stage in engine.stages:
            self.watch(stage)

    def watch(self, stage):
        forward = stage.forward

        def watched(*args, **kwargs):
            self.counts.append(sum(map(is_gathered, stage.model.blocks.values())))
            return forward(*args, **kwargs)

        stage.forward = watched


def is_gathered(block):
    groups = block._get_fsdp_state()._fsdp_param_groups
    outputs = [output for group in groups for parameter in group.fsdp_params for output in parameter.all_gather_outputs]
    return any(output.untyped_storage().nbytes() > 0 for output in outputs)


class Held:
    def __init__(self, tensor):
        self.tensor = tensor


class Live(TorchDispatchMode):
    """Remembers the storage of every operator's result, for as long as something holds it."""

    def __init__(self):
        super().__init__()
        self.storages = WeakIdKeyDictionary()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            # DTensor works out shapes on fake ones
            if isinstance(tensor, torch.Tensor) and not isinstance(tensor, FakeTensor):
                storage = storage_of(tensor)
                self.storages[storage] = storage.nbytes()
        return result


class Peak(Live):
    """The most bytes of real tensors that were alive at once: what the dry run predicts, found without its tracker.

    After each operator, the bytes of everything that lives are summed. `all` includes the engine's shards;
    `activations` includes neither them nor gathered weights and gradients.
    """

    def __init__(self, engine):
        super().__init__()
        self.engine = engine
        state = engine.optimizer.all_tensors()
        self.shards = WeakIdKeyDictionary()
        for tensor in (*(parameter for _, parameter in engine.parameters), *state):
            self.shards[storage_of(tensor)] = storage_of(tensor).nbytes()
        self.held = sum(self.shards.values())
        self.all = self.activations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # DTensor turns it into what it does to local tensors, which comes here again
        result = super().__torch_dispatch__(function, types, args, kwargs)
        live = {id(s): s.nbytes() for s in self.storages if s not in self.shards}
        self.all = max(self.all, self.held + sum(live.values()))
        if sum(live.values()) > self.activations:
            for storage in self.weights_and_gradients():
                live.pop(id(storage), None)
            self.activations = max(self.activations, sum(live.values()))
        return result

    def weights_and_gradients(self):
        for _, parameter in self.engine.parameters:
            if parameter.grad is not None:
                yield storage_of(parameter.grad)
        for stage in self.engine.stages:
            for module in stage.modules():
                for group in module._get_fsdp_state()._fsdp_param_groups if isinstance(module, FSDPModule) else ():
                    for parameter in group.fsdp_params:
                        yield from map(storage_of, parameter.all_gather_outputs)
                        if parameter.unsharded_accumulated_grad is not None:
                            yield storage_of(parameter.unsharded_accumulated_grad)
                        unsharded = getattr(parameter, "_unsharded_param", None)
                        if unsharded is not None and unsharded.grad is not None:
                            yield storage_of(unsharded.grad)


def storage_of(tensor):
    while hasattr(tensor, "_local_tensor") or hasattr(tensor, "elem"):  # a DTensor, a collective under way
        tensor = tensor._local_tensor if hasattr(tensor, "_local_tensor") else tensor.elem
    return tensor.untyped_storage()
