"""An adapter for one device, and the merged weight of a projection and its adapter (LoRA, arXiv 2106.09685)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from gpt.adapters.config import is_adapter
from gpt.model.initialisation import Start


class LowRankAdapter(nn.Module):
    """x (b, t, in) -> scale * B A x (b, t, out), with `a` (r, in) and `b` (out, r). Both stay unset until they are
    filled from outside."""

    def __init__(self, rows: int, columns: int, *, rank: int, scale: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, columns))
        self.b = nn.Parameter(torch.empty(rows, rank))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(functional.linear(x, self.a), self.b) * self.scale


def add_adapter(projection: nn.Module, adapter: nn.Module) -> None:
    """Let a projection add its adapter's output to its own. The adapter becomes its submodule `adapter`."""
    projection.add_module("adapter", adapter)
    projection.register_forward_hook(_with_adapter)


def _with_adapter(projection: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    added: Tensor = projection.adapter(inputs[0])  # type: ignore[operator]
    return output + added


def merged(weight: Tensor, a: Tensor, b: Tensor, *, scale: float) -> Tensor:
    """W + scale * B A, computed in fp32 or wider and rounded once to the weight's dtype."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    return torch.addmm(weight.to(wide), b.to(wide), a.to(wide), alpha=scale).to(weight.dtype)


def start_of_adapter(name: str, shape: tuple[int, ...]) -> Start | None:
    """The starting values of an adapter's parameter, as PEFT has them; None for any other parameter.

    A: uniform in +-1 / sqrt(in), which is Kaiming's with a = sqrt(5). B: 0, so that the start is the base model.
    """
    if not is_adapter(name):
        return None
    return Start(bound=shape[-1] ** -0.5) if name.endswith(".a") else Start()
