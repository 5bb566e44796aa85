"""The arithmetic of each value of parallel.precision: the type of a model's parameters in a step, and its products."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch.distributed.device_mesh import DeviceMesh

from gpt.model.gpt import GPT
from parallel.axes.fp8 import use_fp8_products
from parallel.layout.config import Precision


def _keep_products(model: GPT, mesh: DeviceMesh | None) -> None:
    """Leave the products in the type of their inputs."""


@dataclass(frozen=True)
class Arithmetic:
    """`compute`: the type in which FSDP gives parameters to a step, and of hidden states between stages.

    `set_products(model, mesh of the tensor axis or None)`: changes the products of blocks, on the meta device.
    `capability`: the lowest compute capability of a GPU that has them.
    """

    compute: torch.dtype
    set_products: Callable[[GPT, DeviceMesh | None], None] = _keep_products
    capability: tuple[int, int] = (0, 0)


ARITHMETIC: Mapping[Precision, Arithmetic] = MappingProxyType(
    {
        "fp32": Arithmetic(torch.float32),
        "bf16": Arithmetic(torch.bfloat16),
        "fp8": Arithmetic(torch.bfloat16, use_fp8_products, capability=(8, 9)),
    }
)
