"""The first products of attention and MLP on tensor ranks: of the whole sequence with this rank's rows of the weights.

Backward computes the gradient of the input first and starts the message that adds it up over ranks. Meanwhile it
computes the gradients of the weights, as Megatron-LM does.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gpt.model.gpt import GPT
from parallel.axes.sequence_shards import TensorRanks

PROJECTIONS_OF = {"attention": ("q", "k", "v"), "mlp": ("gate", "up")}


def gather_inputs(model: GPT, ranks: TensorRanks) -> None:
    """Let attention and MLP of every block project the whole sequence, from the part that this rank holds."""
    for _, layer in _named_layers(model):
        layer.projected = _Gathered(ranks, layer.projected)


def overlap_messages(model: GPT, ranks: TensorRanks) -> None:
    """Overlap backward's messages with gradients of weights, where all projections are plain linear layers.

    Call it after `gather_inputs`, adapters and other arithmetic. A backward pass that a schedule splits in two would
    send each message twice.
    """
    for name, layer in _named_layers(model):
        projections = [getattr(layer, part) for part in PROJECTIONS_OF[name] if hasattr(layer, part)]
        if all(type(each) is nn.Linear and not each._forward_hooks for each in projections):
            layer.projected = _Overlapped(ranks, tuple(projections))


def _named_layers(model: GPT) -> Iterator[tuple[str, Any]]:
    for block in model.blocks.values():
        for name in PROJECTIONS_OF:
            yield name, getattr(block, name)


@dataclass(frozen=True)
class _Gathered:
    ranks: TensorRanks
    projected: Callable[[Tensor], tuple[Tensor, ...]]

    def __call__(self, held: Tensor) -> tuple[Tensor, ...]:
        return self.projected(self.ranks.gathered(held))


@dataclass(frozen=True)
class _Overlapped:
    ranks: TensorRanks
    projections: tuple[nn.Linear, ...]

    def __call__(self, held: Tensor) -> tuple[Tensor, ...]:
        if torch.compiler.is_compiling():  # the compiler orders messages and products itself
            x = self.ranks.gathered(held)
            return tuple(each(x) for each in self.projections)
        weights, biases = zip(*[(each.weight, each.bias) for each in self.projections], strict=True)
        products: tuple[Tensor, ...] = _Products.apply(held, self.ranks, *weights, *biases)  # type: ignore[no-untyped-call]
        return products


class _Products(torch.autograd.Function):
    """x @ weight.T + bias with each weight, x being the whole sequence (b, t, d) of which this rank holds `held`."""

    @staticmethod
    def forward(ctx: Any, held: Tensor, ranks: TensorRanks, *parameters: Any) -> tuple[Tensor, ...]:
        half = len(parameters) // 2
        weights, biases = parameters[:half], parameters[half:]
        x = ranks.whole_of(held)
        ctx.ranks = ranks
        of_held, _, *wanted = ctx.needs_input_grad
        # As autograd of a linear layer: frozen weights need no x, and an input without a gradient needs no weights.
        ctx.save_for_backward(x if any(wanted[:half]) else None, *(weights if of_held else ()))
        return tuple(functional.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        rows = [grad.flatten(0, -2) for grad in grads]
        of_held, _, *wanted = ctx.needs_input_grad
        if of_held:
            total = rows[-1] @ weights[-1]
            for grad, weight in zip(rows[-2::-1], weights[-2::-1], strict=True):  # the order of autograd's own sums
                total += grad @ weight
            finish = ctx.ranks.start_sum(total.view(*grads[0].shape[:-1], -1))
            del total  # shares are sent from a copy: free the sum while the weights' gradients are computed
        of_weights = [
            grad.t() @ x.flatten(0, -2) if wants else None
            for grad, wants in zip(rows, wanted[: len(rows)], strict=True)
        ]
        of_biases = [grad.sum(0) if wants else None for grad, wants in zip(rows, wanted[len(rows) :], strict=True)]
        return finish() if of_held else None, None, *of_weights, *of_biases
