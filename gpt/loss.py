"""Next-token cross-entropy computed with the head, a chunk of tokens at a time; never holds all logits at once.

A loss returns a sum and a count, never a mean: a mean of means would depend on how a batch is split.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

IGNORE = -100  # a target that counts neither in the sum nor in the count


@dataclass(frozen=True)
class LossTotals:
    """`sum` in nats, 0-d with gradient; `count` of what was summed, 0-d; `metrics` further 0-d sums by name, which no
    engine reports yet."""

    sum: Tensor
    count: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True)
class VocabShard:
    """Which rows of the head are held here, and how sums and maxima over all holders are taken."""

    start: int
    vocab_size: int  # of the whole vocabulary, padding left out
    reduce_sum: Callable[[Tensor], Tensor]
    reduce_max: Callable[[Tensor], Tensor]


class Loss(Protocol):
    """What an engine needs of a loss."""

    def __call__(self, hidden: Tensor, weight: Tensor, targets: Tensor, shard: VocabShard) -> LossTotals:
        """hidden (b, t, d), the head's rows held here (v, d), targets (b, t)."""
        ...


def whole_vocabulary(vocab_size: int) -> VocabShard:
    """The shard of a process that holds the whole head."""
    return VocabShard(start=0, vocab_size=vocab_size, reduce_sum=_same, reduce_max=_same)


def next_token_loss(hidden: Tensor, weight: Tensor, targets: Tensor, shard: VocabShard) -> LossTotals:
    """Cross-entropy of `targets` (b, t) under the logits hidden @ weight.T; padding rows of the head get no
    probability, IGNORE targets no loss. Communicates only through `shard`, 2 reductions a chunk."""
    hidden, targets = hidden.reshape(-1, hidden.size(-1)), targets.reshape(-1)  # (n, d), (n,)
    total: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, shard)  # type: ignore[no-untyped-call]
    return LossTotals(total, (targets != IGNORE).sum(), {})


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradients are found in the forward pass, while a chunk's logits are at hand, and kept instead of them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, shard: VocabShard) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        total = torch.zeros(
            (), dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32, device=hidden.device
        )
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=total.dtype) if wants_weight else None
        chunk = chunk_tokens(weight.size(0), weight.device)
        for i in range(0, hidden.size(0), chunk):
            h, target = hidden[i : i + chunk], targets[i : i + chunk]
            logits = (h @ weight.T).to(total.dtype)  # (c, v)
            loss, grad = _softmax_cross_entropy(logits, target, shard, wants_gradient=wants_hidden or wants_weight)
            total += loss
            if grad is not None:
                grad = grad.to(hidden.dtype)
                if grad_hidden is not None:
                    grad_hidden[i : i + chunk] = grad @ weight
                if grad_weight is not None:
                    grad_weight += grad.T @ h
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grad_outputs[0]  # in place: a third copy of the head's gradient would be the step's memory peak
        return (
            None if grad_hidden is None else grad_hidden.mul_(scale.to(grad_hidden.dtype)),
            None if grad_weight is None else grad_weight.mul_(scale.to(grad_weight.dtype)),
            None,
            None,
        )


def _softmax_cross_entropy(
    logits: Tensor, target: Tensor, shard: VocabShard, *, wants_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Summed loss of a chunk and its gradient by the logits (c, v), which it overwrites."""
    padding = shard.start + logits.size(1) - shard.vocab_size
    if padding > 0:
        logits[:, max(0, logits.size(1) - padding) :] = -torch.inf
    counted = target != IGNORE
    here = target - shard.start
    held = (here >= 0) & (here < logits.size(1)) & counted
    here = here.clamp(0, logits.size(1) - 1).unsqueeze(1)
    chosen = logits.gather(1, here).squeeze(1).where(held, 0.0)  # (c,)
    largest = shard.reduce_max(logits.max(dim=1).values)
    exponentials = logits.sub_(largest.unsqueeze(1)).exp_()
    sums = shard.reduce_sum(torch.stack((exponentials.sum(dim=1), chosen)))
    normaliser, chosen = sums.unbind()
    loss = ((normaliser.log() + largest - chosen) * counted).sum()
    if not wants_gradient:
        return loss, None
    grad = exponentials.mul_((counted / normaliser).unsqueeze(1))
    grad.scatter_add_(1, here, -held.to(grad.dtype).unsqueeze(1))
    return loss, grad


def chunk_tokens(rows: int, device: torch.device) -> int:
    """Tokens at a time, a multiple of 64: fp32 logits of about 64 MiB on a CPU, for its caches, and 512 MiB on a GPU,
    whose large products are faster and which reads and writes the head's gradient once a chunk."""
    budget_bytes = (64 << 20) if device.type == "cpu" else (512 << 20)
    return max(64, budget_bytes // (4 * rows) // 64 * 64)


def _same(x: Tensor) -> Tensor:
    return x
