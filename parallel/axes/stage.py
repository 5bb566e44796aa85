"""The part of a model that one rank runs, wrapped for its layout. On the last stage the loss is part of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gpt.inference.token_scores import token_scores
from gpt.losses.base import Loss, TokenValues
from gpt.losses.batch import Batch
from gpt.model.attention import Mask
from gpt.model.dropout import ResidualDropout, position_keys
from gpt.model.gpt import GPT, LayerCache
from gpt.model.heads import drops, head_outputs
from gpt.model.masks import AttentionMask
from parallel.axes.local_layers import GatheredHead
from parallel.axes.sequence_shards import TensorRanks
from parallel.axes.tensor_parallel import sharded_head_outputs


@dataclass(frozen=True)
class CachedStep:
    """Tokens that continue those in a cache.

    `positions`, `mask` and `cache` are arguments of GPT.hidden_states. `indices` (n,) name the tokens asked about, by
    row * t + column. `targets` (n,) are the tokens to score after them; None asks for logits.
    """

    positions: Tensor
    mask: Tensor | None
    cache: Mapping[str, LayerCache] | None
    indices: Tensor
    targets: Tensor | None = None


class ModelStage(nn.Module):
    """One pipeline stage of a model, with the loss of its last one.

    `attention_mask(batch)` gives the mask of a micro-batch. `ranks`: the tensor ranks that `apply_tensor_parallel` got,
    None if there is one. `residual_dropout`: the share of elements that blocks drop, in batches that have `row_keys`; a
    head may drop some too. `totals` collects, a tuple per micro-batch, the reported loss, its count and its
    metrics.
    """

    def __init__(
        self,
        model: GPT,
        loss: Loss,
        *,
        attention_mask: Callable[[Batch], Mask],
        ranks: TensorRanks | None,
        residual_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.attention_mask = attention_mask
        self.ranks = ranks
        self.residual_dropout = residual_dropout
        self.drops = residual_dropout > 0 or drops(model.head)
        self.totals: list[tuple[Tensor, ...]] = []

    def forward(
        self,
        x: Tensor,
        batch: Batch | None = None,
        step: CachedStep | None = None,
        *,
        values: bool = False,
        **fields: Tensor,
    ) -> Tensor:
        """The next stage's input, or on the last stage the summed loss of a micro-batch, 0-d.

        `x`: the batch's inputs, or hidden states from the stage before. The batch comes whole or, from torch's pipeline
        schedules, as tensors by name. With `step`, see `_continue`. With `values`, the last stage gives the loss's
        values of the tokens (b, t), and no stage's output has a gradient.
        """
        if step is not None:
            return self._continue(x, step)
        if batch is None:
            batch = Batch.from_tensors({"inputs": x, **fields})
        batch = replace(batch, inputs=x.new_empty(0))  # only the first stage has them: no mask or loss may rely on them
        if values and self.model.embed is None:  # as in training, so that compiled blocks run the same code
            x = x.detach().requires_grad_(torch.is_grad_enabled())
        keys = self._position_keys(x, batch)
        hidden = self._hidden_states(x, batch, keys)
        if values and self.model.head is None:
            return hidden.detach()
        if self.model.head is None:
            if torch.is_grad_enabled() and not hidden.requires_grad:
                hidden.requires_grad_()  # everything up to here is frozen, but schedules run a backward pass anyway
            return hidden
        outputs: Any
        if self.ranks is None:
            outputs = head_outputs(self.model.head, hidden, keys)
        else:
            outputs = sharded_head_outputs(self.model.head, hidden, self.ranks, keys)
        if values:
            assert isinstance(self.loss, TokenValues), "this objective's loss has no values of tokens"
            return self.loss.values(outputs, batch).detach()
        totals = self.loss(outputs, batch)
        names = self.loss.metric_names if torch.is_grad_enabled() else self.loss.evaluation_names
        self.totals.append((totals.reported, totals.count, *(totals.metrics[name] for name in names)))
        return totals.sum

    def _hidden_states(self, x: Tensor, batch: Batch, keys: Tensor | None) -> Tensor:
        length = self._length(x)
        mask = self.attention_mask(batch)
        if isinstance(mask, AttentionMask):
            mask = mask.for_device(rows=x.size(0), length=length, device=x.device)
        positions = batch.positions
        if positions is None and self.model.embed is None:  # x may hold only a part of the sequence
            positions = torch.arange(length, device=x.device).unsqueeze(0)
        dropout = None
        if keys is not None and self.residual_dropout > 0:
            dropout = ResidualDropout(keys, self.residual_dropout)
        return self.model.hidden_states(x, positions=positions, mask=mask, dropout=dropout)

    def _length(self, x: Tensor) -> int:
        """The positions of the whole sequence, of which this rank's input may hold a share."""
        if self.model.embed is not None or self.ranks is None or not self.ranks.splits_sequence:
            return x.size(1)
        return x.size(1) * self.ranks.size

    def _position_keys(self, x: Tensor, batch: Batch) -> Tensor | None:
        """The keys (b, t) from which dropout draws its masks, of this rank's share of the sequence; None without."""
        if batch.row_keys is None or not self.drops:
            return None
        keys = position_keys(batch.row_keys, length=self._length(x))
        return keys if self.ranks is None else self.ranks.held_of(keys)  # (b, t/tp)

    def _continue(self, x: Tensor, step: CachedStep) -> Tensor:
        """The next stage's input, or on the last stage the output for the tokens at `indices`.

        That is logits (n, v), or with targets (2, n) fp32: their log-probabilities, and 1 where a target is the most
        likely token, else 0. The head is applied to these tokens alone.
        """
        hidden = self.model.hidden_states(x, positions=step.positions, mask=step.mask, cache=step.cache)
        head, vocab_size = self.model.head, self.model.vocab_size
        if head is None:
            return hidden
        if step.targets is None:
            logits: Tensor = head(hidden.flatten(0, 1)[step.indices])
            return logits[:, :vocab_size]
        logits_of: Callable[[Tensor], Tensor] = head
        shard = None
        if isinstance(head, GatheredHead):  # a few numbers suffice, so the logits stay sharded
            logits_of, shard = head.local_logits, head.shard
        log_probs, greedy = token_scores(
            hidden, logits_of, indices=step.indices, targets=step.targets, vocab_size=vocab_size, shard=shard
        )
        return torch.stack((log_probs, greedy.float()))


def canonical_name(name: str, model: GPT) -> str:
    """A parameter's name in the whole model on one device. A tied head has its embedding's name, on every rank."""
    name = name.removeprefix("model.").replace("_checkpoint_wrapped_module.", "")
    return "embed.tokens.weight" if name == "head.weight" and model.tied else name


def canonical_parameters(stage: ModelStage) -> list[tuple[str, nn.Parameter]]:
    """The stage's parameters by their canonical names."""
    return [(canonical_name(name, stage.model), parameter) for name, parameter in stage.named_parameters()]
