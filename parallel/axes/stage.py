"""The piece of a model that one rank runs, wrapped for its layout; the loss is part of it on the last stage."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.nn import functional

from gpt.inference.token_scores import token_scores
from gpt.losses.base import Loss, whole_vocabulary
from gpt.model.gpt import GPT, LayerCache
from parallel.axes.tensor_parallel import (
    vocabulary_parallel_loss,
    vocabulary_shard,
)


@dataclass(frozen=True)
class CachedStep:
    """Tokens that go on from those in a cache: arguments of GPT.hidden_states, the places (n,) that are asked, and the
    tokens (n,) whose log-probabilities there are wanted; None: the logits."""

    positions: Tensor
    mask: Tensor | None
    cache: Mapping[str, LayerCache] | None
    places: Tensor
    targets: Tensor | None = None


class Stage(nn.Module):
    """One pipeline stage. Forward gives the next stage's input, or on the last stage the summed loss when targets are
    given, else logits; other stages ignore targets. `totals` gathers of each loss what is reported, its count and its
    metrics, in the order of the micro-batches."""

    def __init__(self, model: GPT, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.totals: list[tuple[Tensor, ...]] = []

    def forward(self, x: Tensor, targets: Tensor | None = None, step: CachedStep | None = None) -> Tensor:
        if step is not None:
            return self._continue(x, step)
        head = self.model.head
        if targets is None or head is None:
            y: Tensor = self.model(x)
            return y
        hidden = self.model.hidden_states(x)
        if isinstance(hidden, DTensor):
            totals = vocabulary_parallel_loss(self.loss, head, hidden, targets, self.model.vocab_size)
        else:
            totals = self.loss(hidden, head.weight, targets, whole_vocabulary(self.model.vocab_size))
        metrics = (totals.metrics[name] for name in self.loss.metric_names if name in totals.metrics)
        self.totals.append((totals.reported, totals.count, *metrics))
        return totals.sum

    def _continue(self, x: Tensor, step: CachedStep) -> Tensor:
        """The next stage's input, or on the last stage logits (n, v) of the places asked, or, (2, n) fp32, the targets'
        log-probabilities and whether each is the likeliest (1 or 0). The head is applied to those places alone."""
        hidden = self.model.hidden_states(x, positions=step.positions, mask=step.mask, cache=step.cache)
        head, vocab_size = self.model.head, self.model.vocab_size
        if head is None:
            return hidden
        logits_of: Callable[[Tensor], Tensor] = head
        shard = None
        if isinstance(hidden, DTensor):  # sharded over places
            logits_of = partial(_replicated_head, head, hidden.device_mesh)
            hidden = hidden.redistribute(placements=[Replicate()]).to_local()
            if step.targets is not None:  # few numbers are wanted: logits stay where they are
                assert isinstance(head.weight, DTensor)
                logits_of = partial(functional.linear, weight=head.weight.to_local())
                shard = vocabulary_shard(head, vocab_size)
        if step.targets is None:
            return logits_of(hidden.flatten(0, 1)[step.places])[:, :vocab_size]
        log_probs, greedy = token_scores(
            hidden, logits_of, indices=step.places, targets=step.targets, vocab_size=vocab_size, shard=shard
        )
        return torch.stack((log_probs, greedy.float()))


def _replicated_head(head: Callable[[Tensor], Tensor], mesh: DeviceMesh, hidden: Tensor) -> Tensor:
    """Logits of places that all tensor ranks have; the head takes a plain tensor for a rank's own share of them."""
    return head(DTensor.from_local(hidden, mesh, [Replicate()], run_check=False))


def canonical_parameters(stage: Stage) -> list[tuple[str, nn.Parameter]]:
    """Parameters by their name in the whole model on one device; a tied head has its embedding's name, also where
    another rank holds the embedding."""
    named = []
    for name, parameter in stage.named_parameters():
        name = name.removeprefix("model.").replace("_checkpoint_wrapped_module.", "")
        if name == "head.weight" and stage.model.tied:
            name = "embed.tokens.weight"
        named.append((name, parameter))
    return named
