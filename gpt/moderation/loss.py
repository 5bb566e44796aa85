"""The loss of a classifier: binary cross-entropy of known labels; unknown ones contribute nothing."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from gpt.losses.base import LossTotals
from gpt.losses.batch import Batch
from gpt.losses.marks import IGNORE
from gpt.moderation.heads import constrained
from gpt.moderation.pooling import LAST_TOKEN, Pooling
from gpt.moderation.wdat import domain_distance
from gpt.token_files.label_states import POSITIVE, UNKNOWN


@dataclass(frozen=True)
class ClassifierLoss:
    """The sum over known labels, and their number. `outputs` (b, t, c), or (b, t, c + 1) with a critic's values; those
    of attention pooling also have scores, see gpt.moderation.pooling.

    `batch.targets` (b, t, c): at the last token of a text the state of each label, IGNORE elsewhere. `weights`: of the
    positive labels of each category. `parents`: the position of each category's parent, -1 without one; with
    `constrain` it has at least the logits of its children whose labels are known. `pooling` gives the outputs of a text
    from those of its tokens. With `adversarial`, texts without a known label are the target domain, and the loss
    has the term -distance for each known label of a micro-batch (see gpt.moderation.wdat).

    An evaluation shows `loss_ID` of each category, and `violations`, the share of pairs of a text and a category with a
    parent where the head's own logit of the child is larger than the parent's; training and evaluation show `distance`.
    """

    ids: tuple[str, ...]
    weights: tuple[float, ...]
    parents: tuple[int, ...]
    constrain: bool = True
    pooling: Pooling = LAST_TOKEN
    focal_gamma: float = 0.0
    adversarial: bool = False

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("distance",) if self.adversarial else ()

    @property
    def evaluation_names(self) -> tuple[str, ...]:
        by_category = [f"{kind}_{category}" for category in self.ids for kind in ("sum", "known")]
        return (*self.metric_names, "violations", "pairs", *by_category)

    def shown(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """See gpt.losses.base.ShownMetrics. NaN for a category without a known label."""
        values = {name: metrics[name] for name in self.metric_names}
        if any(parent >= 0 for parent in self.parents):
            values["violations"] = _ratio(metrics["violations"], metrics["pairs"])
        return values | {f"loss_{one}": _ratio(metrics[f"sum_{one}"], metrics[f"known_{one}"]) for one in self.ids}

    @property
    def n_values(self) -> int:
        """The numbers of a token that `values` gives."""
        return len(self.ids)

    @property
    def values_need_whole_text(self) -> bool:
        """See gpt.losses.base.OwnTokenValues."""
        return self.pooling.needs_whole_text

    def values(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The logits (b, t, c) of each text up to each position, with parents at least their children."""
        logits = self.pooling(outputs, batch.positions)[..., : len(self.ids)]
        return constrained(logits, self.parents) if self.constrain else logits

    def __call__(self, outputs: Tensor, batch: Batch) -> LossTotals:
        states = batch.targets  # (b, t, c)
        if batch.loss_mask is not None:
            states = states.masked_fill(~batch.loss_mask.unsqueeze(-1), IGNORE)
        ends = states[..., 0] != IGNORE  # (b, t)
        known, positive = states > UNKNOWN, states == POSITIVE
        outputs = self.pooling(outputs, batch.positions)
        own = outputs[..., : len(self.ids)]
        logits = constrained(own, self.parents, known) if self.constrain else own
        losses = torch.where(known, self.of_labels(logits, positive), 0)  # (b, t, c)
        total = reported = losses.sum()
        count = known.sum()
        metrics = {}
        if self.adversarial:
            has_label = known.any(-1)
            distance = domain_distance(outputs[..., -1], ends & has_label, ends & ~has_label)
            total = total - distance * count
            metrics["distance"] = distance.detach() * count
        if not torch.is_grad_enabled():
            metrics |= self._by_category(losses, known, own, ends)
        return LossTotals(total, count, reported.detach(), metrics)

    def of_labels(self, logits: Tensor, positive: Tensor) -> Tensor:
        """The loss of each label (..., c) from the logits and whether the label is positive, as if all were known."""
        against = torch.where(positive, -logits, logits)  # the logit of the wrong answer
        losses = functional.softplus(against)
        if self.focal_gamma:
            losses = losses * torch.exp(self.focal_gamma * functional.logsigmoid(against))
        if any(weight != 1 for weight in self.weights):
            weights = torch.tensor(self.weights, dtype=losses.dtype, device=losses.device)
            losses = torch.where(positive, losses * weights, losses)
        return losses

    def _by_category(self, losses: Tensor, known: Tensor, own: Tensor, ends: Tensor) -> dict[str, Tensor]:
        sums, counts = losses.sum((0, 1)), known.sum((0, 1))
        children = [child for child, parent in enumerate(self.parents) if parent >= 0]
        above = own[..., children] > own[..., [self.parents[child] for child in children]]  # (b, t, children)
        found = {"violations": (above & ends.unsqueeze(-1)).sum(), "pairs": ends.sum() * len(children)}
        for i, category in enumerate(self.ids):
            found |= {f"sum_{category}": sums[i], f"known_{category}": counts[i]}
        return found


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
