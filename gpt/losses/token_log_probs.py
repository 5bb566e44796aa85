"""Log-probabilities of given tokens with a gradient for each, a chunk of tokens at a time.

Losses that weigh every token differently need them: policy gradients (arXiv 1707.06347) and preferences (2305.18290).
Shapes: n = b * t tokens, in one chunk c; d = d_model; v rows of the vocabulary held by this process.
"""

from typing import Any

import torch
from torch import Tensor

from gpt.losses.base import VocabShard, VocabularyOutputs
from gpt.losses.batch import counted_rows
from gpt.losses.linear_cross_entropy import chunk_tokens
from gpt.losses.marks import IGNORE


def token_log_probs(outputs: VocabularyOutputs, targets: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Log-probability of each target in nats, (b, t) in at least fp32; 0 where a target is IGNORE.

    `targets` (b, t). The probabilities are those of logits / temperature, as a sampler with this temperature has them.
    Differentiable w.r.t. hidden states and weight. The backward pass computes the logits again, so that not all of them
    are in memory at once: 5 products of (n, d) with (d, v) in all. On a CPU, n counts only the targets that are not
    IGNORE. All holders of the vocabulary must call it; they
    make 2 reductions a chunk.
    """
    return _compute(outputs, targets, temperature, entropy=False)[0]


def log_probs_and_entropy(
    outputs: VocabularyOutputs, targets: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """`token_log_probs`, bit for bit, and the entropy of the distribution behind each target in nats, (b, t).

    The entropy has no gradient. Both are 0 where a target is IGNORE.
    """
    return _compute(outputs, targets, temperature, entropy=True)


def _compute(
    outputs: VocabularyOutputs, targets: Tensor, temperature: float, *, entropy: bool
) -> tuple[Tensor, Tensor]:
    hidden, flat = outputs.hidden.reshape(-1, outputs.hidden.size(-1)), targets.reshape(-1)
    rows = counted_rows(flat)
    chosen = (hidden, flat) if rows is None else (hidden.index_select(0, rows), flat[rows])
    log_probs, entropies = _TokenLogProbs.apply(  # type: ignore[no-untyped-call]
        chosen[0], outputs.weight, chosen[1], outputs.shard, temperature, entropy
    )
    if rows is not None:
        log_probs = log_probs.new_zeros(flat.size(0)).index_copy(0, rows, log_probs)
        entropies = entropies.new_zeros(flat.size(0)).index_copy(0, rows, entropies) if entropy else entropies
    return log_probs.view_as(targets), entropies.view_as(targets) if entropy else entropies


class _TokenLogProbs(torch.autograd.Function):
    """Keeps its inputs and log Z of each token for backward: (n, d) and (n,)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        shard: VocabShard,
        temperature: float,
        entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities (n,), and the entropies (n,), or (0,) if they are not wanted."""
        n, wide = hidden.size(0), torch.promote_types(hidden.dtype, torch.float32)
        log_probs = torch.empty(n, dtype=wide, device=hidden.device)
        log_z = torch.empty_like(log_probs)
        entropies = torch.empty(n if entropy else 0, dtype=wide, device=hidden.device)
        for rows in _chunks(n, weight, shard):
            logits = _logits(hidden[rows], weight, shard, temperature)
            largest = shard.reduce_max(logits.amax(dim=1))
            column, held = _columns(targets[rows], logits.size(1), shard)
            chosen = logits.gather(1, column.unsqueeze(1)).squeeze(1).where(held, 0.0)
            e = (logits - largest.unsqueeze(1)).exp_()
            sums = [e.sum(dim=1), chosen]
            if entropy:
                sums.append(e.mul_(logits).sum(dim=1))
            z, chosen, *weighted = shard.reduce_sum(torch.stack(sums)).unbind()
            counted = targets[rows] != IGNORE
            log_z[rows] = largest + z.log()
            log_probs[rows] = (chosen - log_z[rows]).where(counted, 0.0)
            if entropy:
                entropies[rows] = (log_z[rows] - weighted[0] / z).where(counted, 0.0)
        ctx.save_for_backward(hidden, weight, targets, log_z)
        ctx.shard, ctx.temperature = shard, temperature
        ctx.mark_non_differentiable(entropies)
        return log_probs, entropies

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, log_z = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad = grad_outputs[0].where(targets != IGNORE, 0.0) / ctx.temperature  # w.r.t. logits before the temperature
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=log_z.dtype) if wants_weight else None
        for rows in _chunks(hidden.size(0), weight, ctx.shard):
            logits = _logits(hidden[rows], weight, ctx.shard, ctx.temperature)
            column, held = _columns(targets[rows], logits.size(1), ctx.shard)
            p = logits.sub_(log_z[rows].unsqueeze(1)).exp_()
            along = p.mul_(-grad[rows].unsqueeze(1))  # (c, v): the gradient w.r.t. the logits; the targets' 1 follows
            along.scatter_add_(1, column.unsqueeze(1), grad[rows].where(held, 0.0).unsqueeze(1))
            along = along.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = along @ weight
            if grad_weight is not None:
                grad_weight += along.T @ hidden[rows]
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None, None


def _chunks(n: int, weight: Tensor, shard: VocabShard) -> list[slice]:
    """Equal chunks on all holders, which must reduce together."""
    size = chunk_tokens(max(shard.max_rows, weight.size(0)), weight.device)
    return [slice(start, min(n, start + size)) for start in range(0, n, size)]


def _logits(hidden: Tensor, weight: Tensor, shard: VocabShard, temperature: float) -> Tensor:
    """The logits (c, v) that a softmax takes, in at least fp32. Padding rows of the head get no probability."""
    logits = hidden @ weight.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1.0:
        logits = logits.div_(temperature)
    padding = shard.start + logits.size(1) - shard.vocab_size
    if padding > 0:  # finite, not -inf: a shard of only padding must not give 0 / 0
        logits[:, max(0, logits.size(1) - padding) :] = torch.finfo(logits.dtype).min
    return logits


def _columns(targets: Tensor, columns: int, shard: VocabShard) -> tuple[Tensor, Tensor]:
    """The column of each target among those held here, clamped to a valid one, and whether it is held here, (c,)."""
    here = targets - shard.start
    return here.clamp(0, columns - 1), (here >= 0) & (here < columns) & (targets != IGNORE)
