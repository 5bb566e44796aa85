"""Choose the penalty of each linear head by leave-one-out cross-validation, from one fit for each candidate.

The logit that a text would have from a head fitted without it is approximated by one Newton step from the head fitted
to all: z + h g / (1 - h s), with the gradient g and the curvature s of the text's loss, and h = x H^-1 x of the inverse
Hessian (Rad and Maleki, arXiv 1801.10243).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gpt.errors import ConfigError
from gpt.moderation.frozen.linear_heads import Floats, check_l2, columns, hessian, known_labels, minimum, no_fit

L2_CANDIDATES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)


def choose_l2(
    features: NDArray[np.floating],
    labels: Floats,
    ids: Sequence[str],
    *,
    candidates: Sequence[float] = L2_CANDIDATES,
    standardise: bool = True,
    class_weights: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """The penalty of each category whose heads predict left-out texts with the least cross-entropy.

    Arguments as for `fit_heads`. A category with one positive or one negative text gets the largest candidate that
    fits, since no text can be left out. A candidate for which no head fits, or whose loss is not finite, is left out.
    ConfigError: as `fit_heads`; none fits; or there are no candidates.
    """
    if not candidates:
        raise ConfigError("candidates of l2 are empty: at least one is needed. Use 100")
    for one in candidates:
        check_l2(one)
    x, _ = columns(features, standardise=standardise)
    chosen = {}
    for category, column in zip(ids, labels.T, strict=True):
        known, sign, weight = known_labels(category, column, class_weights)
        is_single = min((sign > 0).sum(), (sign < 0).sum()) == 1
        losses: dict[float, float] = {}
        start: Floats | None = None
        for l2 in sorted(candidates, reverse=True):  # the minimum moves little from one to the next
            head = minimum(x[known], sign, weight, l2, start=start)
            if head is None:
                continue
            loss = 0.0 if is_single else _loss_left_out(head, x[known], sign, weight, l2)
            if not np.isfinite(loss):
                continue
            start, losses[l2] = head, loss
            if is_single:
                break
        by_loss = sorted(losses, key=lambda l2: losses[l2])
        fits = (l2 for l2 in by_loss if minimum(x[known], sign, weight, l2) is not None)  # as `fit_heads`, from zero
        if (best := next(fits, None)) is None:
            raise no_fit(category, max(candidates))
        chosen[category] = best
    return chosen


def _loss_left_out(w: Floats, x: Floats, sign: Floats, weight: Floats, l2: float) -> float:
    """The sum of the cross-entropies of texts, each by the head fitted without it. Infinite: a singular Hessian."""
    try:
        return float(weight @ np.logaddexp(0.0, -sign * left_out_logits(w, x, sign, weight, l2)))
    except np.linalg.LinAlgError:
        return float("inf")


def left_out_logits(w: Floats, x: Floats, sign: Floats, weight: Floats, l2: float) -> Floats:
    """The logit (n,) of each text by the head without it. `w` (d + 1,): the head fitted to all, see `minimum`."""
    logits = x @ w
    wrong = 0.5 - 0.5 * np.tanh(0.5 * sign * logits)
    leverage = np.einsum("nd,dn->n", x, np.linalg.solve(hessian(w, x, sign, weight, l2), x.T))
    found: Floats = logits - leverage * weight * sign * wrong / (1 - leverage * weight * wrong * (1 - wrong))
    return found
