"""Cross-entropy of a linear layer, a chunk of tokens at a time, so that not all logits are in memory at once."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpt.losses.base import VocabShard
from gpt.losses.marks import IGNORE

Exponentials = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # see _exponentials
MIN_Z_FACTOR = 1e-3  # lower bound on abs(1 + 2 * z_loss * log Z), which _softmax_cross_entropy divides by


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    shard: VocabShard,
    *,
    z_loss: float = 0.0,
    in_place: Exponentials | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Summed loss with z-loss, and without gradient its two parts: cross-entropy and z-loss. Each 0-d, in nats.

    hidden (n, d), weight (v, d) the rows held here, targets (n,). 2 reductions of `shard` a chunk of tokens.
    """
    totals: tuple[Tensor, Tensor, Tensor] = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, shard, z_loss, in_place
    )
    return totals


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradients in the forward pass, while a chunk's logits exist, and saves them instead of the logits.

    The gradient w.r.t. a chunk's logits is e * factor, with e (c, v) and factor (c, 1). Multiplying the (c, d) sides
    of the products by the factor is cheaper than multiplying e.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        shard: VocabShard,
        z_loss: float,
        in_place: Exponentials | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The sum to minimise, and its two parts: cross-entropy and z-loss."""
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        reported = torch.zeros((), dtype=_wide(hidden), device=hidden.device)
        penalty = torch.zeros_like(reported)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight: Tensor | None = None
        chunk = _equal_chunk(hidden.size(0), weight, shard.max_rows, in_place=in_place is not None)
        for i in range(0, hidden.size(0), chunk):
            h, target = hidden[i : i + chunk], targets[i : i + chunk]
            loss, log_z, e, factor = _softmax_cross_entropy(
                h @ weight.T, target, shard, in_place or _exponentials, z_loss=z_loss
            )
            reported += loss
            if z_loss:
                penalty += z_loss * (log_z.square() * (target != IGNORE)).sum()
            if grad_hidden is not None:
                grad_hidden[i : i + chunk] = (e @ weight) * factor
            if wants_weight and chunk >= hidden.size(0):  # a single chunk needs no accumulator
                grad_weight = e.T @ (h * factor).to(h.dtype)  # (v, d)
            elif wants_weight:
                grad_weight = torch.zeros_like(weight, dtype=reported.dtype) if grad_weight is None else grad_weight
                grad_weight += e.T @ (h * factor).to(h.dtype)
            del e  # free it before the next chunk allocates its own
        ctx.scale = None
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        ctx.mark_non_differentiable(reported, penalty)
        return reported + penalty, reported, penalty

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad_outputs[0]
        grads: tuple[Tensor | None, ...] = ctx.saved_tensors
        if ctx.scale is None:
            ctx.scale = scale
            if scale.device.type != "cpu" or scale.item() != 1.0:  # on a CPU the test is cheaper than the product
                for grad in grads:  # in place: a third copy of the head's gradient would set the step's memory peak
                    if grad is not None:
                        grad.data.mul_(scale.to(grad.dtype))  # .data: a retained graph may run this again
        elif ctx.scale is not scale:  # zero-bubble schedules call backward twice with the same tensor
            grads = tuple(None if grad is None else grad * (scale / ctx.scale).to(grad.dtype) for grad in grads)
        return (*grads, None, None, None, None)


def _softmax_cross_entropy(
    logits: Tensor, target: Tensor, shard: VocabShard, exponentials: Exponentials, *, z_loss: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Summed loss of a chunk, log Z (c,), and e (c, v) and factor (c, 1): e * factor is the gradient w.r.t. the logits
    (c, v) of the loss with its z-loss. May overwrite the logits."""
    padding = shard.start + logits.size(1) - shard.vocab_size
    if padding > 0:  # finite, not -inf: a shard of only padding must not give 0 / 0
        logits[:, max(0, logits.size(1) - padding) :] = torch.finfo(logits.dtype).min
    counted = target != IGNORE
    here = target - shard.start
    held = (here >= 0) & (here < logits.size(1)) & counted
    here = here.clamp(0, logits.size(1) - 1)
    chosen_here = logits.gather(1, here.unsqueeze(1)).squeeze(1).to(_wide(logits))  # (c,)
    e, reference, sums = exponentials(logits)
    largest = shard.reduce_max(reference.clone())  # clone: the reduction may work in place
    sums, chosen = shard.reduce_sum(
        torch.stack((sums * (reference - largest).exp(), chosen_here.where(held, 0.0)))
    ).unbind()
    normaliser = largest + sums.log()
    loss = ((normaliser - chosen) * counted).sum()
    shift = (reference - normaliser).clamp(min=-80.0)  # below -80 this shard's share of the softmax rounds to 0
    p, one = shift.exp() * counted, (-shift).exp()  # e * p is the softmax and one * p is 1
    if z_loss:  # d(log^2 Z)/dz = 2 log Z * softmax(z): scale the softmax up and the 1 down
        more = 1 + 2 * z_loss * normaliser
        more = more.where(more.abs() > MIN_Z_FACTOR, MIN_Z_FACTOR)
        p, one = p * more, one / more
    spike = (chosen_here - reference).exp() - one
    rows = torch.arange(e.size(0), device=e.device)
    e[rows, here] = spike.to(e.dtype).where(held, e[rows, here])  # scatter_ would copy e
    return loss, normaliser, e, p.unsqueeze(1)


def _exponentials(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """e = exp(logits - reference) (c, v) in the logits' dtype; the reference and row sums of e (c,) in at least fp32.
    torch's softmax is one kernel: its log-sum-exp is the reference, so the sums are 1."""
    p = logits.softmax(dim=1, dtype=_wide(logits))
    reference = logits.amax(dim=1) - p.amax(dim=1).log()
    return p.to(logits.dtype), reference, torch.ones_like(reference)


def exponentials_in_place(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `_exponentials` with the row maximum as reference, and write e over the logits. torch's compiler makes it
    one loop. The sums are of the rounded e, so that the gradient of a row adds up to zero."""
    reference = logits.to(_wide(logits)).amax(dim=1)
    logits.copy_((logits.to(_wide(logits)) - reference.unsqueeze(1)).exp())
    return logits, reference, logits.to(_wide(logits)).sum(dim=1)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _equal_chunk(n: int, weight: Tensor, max_rows: int, *, in_place: bool) -> int:
    """Tokens per chunk, chosen so that all chunks of `n` have nearly equal size. Rows: the larger of `max_rows` and
    those of `weight`. Logits overwritten in the compute dtype allow larger chunks: 256 MiB on a CPU, 1 GiB on a GPU."""
    rows = max(max_rows, weight.size(0))
    limit = chunk_tokens(rows, weight.device)
    if in_place:
        budget_bytes = (256 << 20) if weight.device.type == "cpu" else (1 << 30)
        limit = max(limit, budget_bytes // (weight.element_size() * rows))
    return max(1, -(-n // max(1, -(-n // limit))))


def chunk_tokens(rows: int, device: torch.device) -> int:
    """Tokens per chunk, a multiple of 64. fp32 logits take about 64 MiB on a CPU, to stay in cache, and 512 MiB on a
    GPU, where large products are faster and each chunk reads and writes the head's gradient once."""
    budget_bytes = (64 << 20) if device.type == "cpu" else (512 << 20)
    return max(64, budget_bytes // (4 * rows) // 64 * 64)
