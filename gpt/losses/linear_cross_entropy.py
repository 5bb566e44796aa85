"""Cross-entropy of a linear layer, a chunk of tokens at a time, so that not all logits are in memory at once."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpt.losses.base import IGNORE, VocabShard

Exponentials = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # see _exponentials


MIN_FACTOR = 1e-3  # what z-loss may at least multiply a softmax by: the product of e and factor cannot tell of 0


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradients are found in the forward pass, while a chunk's logits are at hand, and kept instead of them.

    The gradient by a chunk's logits is e * factor, e (c, v) and factor (c, 1): the factor costs less on the (c, d)
    sides of the products than in e.
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
        """What a step lowers, and its two parts: the cross-entropy and the z-loss."""
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
            if wants_weight and chunk >= hidden.size(0):  # a sole chunk has nothing to be added to
                grad_weight = e.T @ (h * factor).to(h.dtype)  # (v, d)
            elif wants_weight:
                grad_weight = torch.zeros_like(weight, dtype=reported.dtype) if grad_weight is None else grad_weight
                grad_weight += e.T @ (h * factor).to(h.dtype)
            del e  # or the next chunk's would be made beside it
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
            if scale.device.type != "cpu" or scale.item() != 1.0:  # on a CPU, to ask costs less than to multiply by 1
                for grad in grads:  # in place: a third copy of the head's gradient would be the step's memory peak
                    if grad is not None:
                        grad.data.mul_(scale.to(grad.dtype))  # .data: a retained graph may come here once more
        elif ctx.scale is not scale:  # a pipeline that splits backward in two passes the same tensor twice
            grads = tuple(None if grad is None else grad * (scale / ctx.scale).to(grad.dtype) for grad in grads)
        return (*grads, None, None, None, None)


def _softmax_cross_entropy(
    logits: Tensor, target: Tensor, shard: VocabShard, exponentials: Exponentials, *, z_loss: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Summed loss of a chunk, log Z (c,), and e (c, v) and factor (c, 1), whose product is the gradient by the logits
    (c, v) of the loss and its z-loss. May overwrite the logits."""
    padding = shard.start + logits.size(1) - shard.vocab_size
    if padding > 0:  # the lowest number and not -inf, so that a shard of nothing but padding has no 0 / 0
        logits[:, max(0, logits.size(1) - padding) :] = torch.finfo(logits.dtype).min
    counted = target != IGNORE
    here = target - shard.start
    held = (here >= 0) & (here < logits.size(1)) & counted
    here = here.clamp(0, logits.size(1) - 1)
    chosen_here = logits.gather(1, here.unsqueeze(1)).squeeze(1).to(_wide(logits))  # (c,)
    e, reference, sums = exponentials(logits)
    largest = shard.reduce_max(reference.clone())  # which may work in place
    sums, chosen = shard.reduce_sum(
        torch.stack((sums * (reference - largest).exp(), chosen_here.where(held, 0.0)))
    ).unbind()
    normaliser = largest + sums.log()
    loss = ((normaliser - chosen) * counted).sum()
    shift = (reference - normaliser).clamp(min=-80.0)  # of a shard that far below, exp(shift) is nothing beside 1
    p, one = shift.exp() * counted, (-shift).exp()  # e times p is the softmax, one times p is 1
    if z_loss:  # by a logit z, log^2 Z has the slope 2 log Z softmax(z): so much more of the softmax, and as much of 1
        more = 1 + 2 * z_loss * normaliser
        more = more.where(more.abs() > MIN_FACTOR, MIN_FACTOR)
        p, one = p * more, one / more
    spike = (chosen_here - reference).exp() - one
    rows = torch.arange(e.size(0), device=e.device)
    e[rows, here] = spike.to(e.dtype).where(held, e[rows, here])  # scatter_ would copy e
    return loss, normaliser, e, p.unsqueeze(1)


def _exponentials(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """e = exp(logits - reference) (c, v) in the logits' type, the reference (c,), and the sums of e by row (c,), both
    in at least fp32. torch's softmax is one kernel: it makes the log-sum-exp the reference, and the sums 1."""
    p = logits.softmax(dim=1, dtype=_wide(logits))
    reference = logits.amax(dim=1) - p.amax(dim=1).log()
    return p.to(logits.dtype), reference, torch.ones_like(reference)


def _exponentials_in_place(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same with the row's maximum as reference, e where the logits were. For the compiler, which makes it one loop
    that takes each exponential once. The sums are of the rounded e, so that the gradient of a row adds up to zero."""
    reference = logits.to(_wide(logits)).amax(dim=1)
    logits.copy_((logits.to(_wide(logits)) - reference.unsqueeze(1)).exp())
    return logits, reference, logits.to(_wide(logits)).sum(dim=1)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _equal_chunk(n: int, weight: Tensor, max_rows: int, *, in_place: bool) -> int:
    """Tokens at a time, so that all chunks of `n` are of one size, or almost; for a holder of `max_rows`, or of as
    many as `weight` has. Logits that are overwritten in the compute type, never widened, allow for more: 256 MiB of
    them on a CPU and 1 GiB on a GPU."""
    rows = max(max_rows, weight.size(0))
    most = chunk_tokens(rows, weight.device)
    if in_place:
        budget_bytes = (256 << 20) if weight.device.type == "cpu" else (1 << 30)
        most = max(most, budget_bytes // (weight.element_size() * rows))
    return max(1, -(-n // max(1, -(-n // most))))


def chunk_tokens(rows: int, device: torch.device) -> int:
    """Tokens at a time, a multiple of 64: fp32 logits of about 64 MiB on a CPU, for its caches, and 512 MiB on a GPU,
    whose large products are faster and which reads and writes the head's gradient once a chunk."""
    budget_bytes = (64 << 20) if device.type == "cpu" else (512 << 20)
    return max(64, budget_bytes // (4 * rows) // 64 * 64)
