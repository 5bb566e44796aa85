"""Answer megatron-core's CUDA calls on the CPU, so that tests can run it with gloo. Only for tests.

`install()` patches torch and megatron-core in this process: "cuda" means the CPU, and the generators of CUDA are those
of the CPU. No number that megatron-core computes is changed.
"""

import dataclasses
import functools

import torch

from parallel.engines import capabilities

_FACTORIES = ("zeros", "ones", "empty", "full", "tensor", "arange")


def _on_cpu(factory):
    @functools.wraps(factory)
    def on_cpu(*args, device=None, **more):
        if device is not None and str(device).startswith("cuda"):
            device = "cpu"
        return factory(*args, device=device, **more)

    return on_cpu


def _type_as_on_cuda(original):
    @functools.wraps(original)
    def type_(self, dtype=None, *args, **more):
        if dtype is None:
            return original(self).replace("torch.", "torch.cuda.")
        return original(self, dtype, *args, **more)

    return type_


def allow():
    """Take CPU ranks for the megatron engine in this process's checks."""
    rules = dataclasses.replace(capabilities.MEGATRON, devices=("cpu",))
    capabilities.ALL = tuple(rules if each.engine == "megatron" else each for each in capabilities.ALL)


def install():
    """Patch this process. Call it before an engine is built."""
    from megatron.core.tensor_parallel import random

    allow()
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    torch.Tensor.cuda = lambda self, *args, **more: self
    torch.Tensor.type = _type_as_on_cuda(torch.Tensor.type)
    torch.cuda.current_device = lambda: "cpu"
    torch.cuda.synchronize = lambda *args: None
    torch.cuda.manual_seed = torch.default_generator.manual_seed
    torch.cuda.get_rng_state = lambda *args, **more: torch.get_rng_state()
    random._get_cuda_rng_state = lambda *args, **more: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *args, **more: torch.set_rng_state(state)
