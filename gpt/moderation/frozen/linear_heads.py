"""Fit linear heads to the features of a frozen trunk: logistic regression for each category, in seconds.

    minimise over w, b of l2 / 2 * |w|^2 + sum over texts with a known label of weight * cross-entropy(w x + b, label)

It is scikit-learn's LogisticRegression with C = 1 / l2, in float64. Newton's method needs about ten passes over the
features, and ends nearer to the minimum than L-BFGS, which needs hundreds. Memory: 8 d^2 bytes beside the features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt.errors import ConfigError

_MAX_STEPS, _MAX_HALVINGS = 100, 40
_TOLERANCE = 1e-12  # of the decrease that the last step promises, relative to the loss; Newton's squares the rest

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class FittedHeads:
    """Linear heads: logits are features @ weight.T + bias. weight (c, d) and bias (c,) float64. `n_known` (c,): the
    labels that each was fitted to."""

    weight: Floats
    bias: Floats
    n_known: tuple[int, ...]

    def logits(self, features: NDArray[np.floating]) -> Floats:
        """(n, c) from features (n, d), without a parents' maximum."""
        found: Floats = features.astype(np.float64) @ self.weight.T + self.bias
        return found


def fit_heads(
    features: NDArray[np.floating],
    labels: Floats,
    ids: Sequence[str],
    *,
    l2: float = 1.0,
    standardise: bool = False,
    class_weights: Mapping[str, float] | None = None,
) -> FittedHeads:
    """Fit the head of each category of `ids` to features (n, d) and labels (n, c): 1, 0, NaN where unknown.

    `standardise`: the penalty is of weights for features of mean 0 and deviation 1; the result takes the features as
    they are. `class_weights`: factors of the loss of positive labels. ConfigError: a category lacks a positive or a
    negative label, or no fit is found, since features are not finite or on very different scales.
    """
    if not 0 < l2 < float("inf"):
        raise ConfigError(f"l2 = {l2:g} is invalid: must be a number above 0. Use 1")
    x, back = _columns(features, standardise=standardise)
    rows, counts = [], []
    for category, column in zip(ids, labels.T, strict=True):
        known = ~np.isnan(column)
        label = column[known] > 0.5
        for n, word in ((int(label.sum()), "positive"), (int((~label).sum()), "negative")):
            if n == 0:
                raise ConfigError(
                    f"category '{category}' has no {word} label in {len(column):,} texts, so no head can be fitted. "
                    f"Label some, or leave the category out of the taxonomy"
                )
        weight = np.where(label, (class_weights or {}).get(category, 1.0), 1.0)
        fitted = _fit(x[known], np.where(label, 1.0, -1.0), weight, l2)
        if fitted is None:
            raise ConfigError(
                f"category '{category}': no head fits the features, which are not finite or on very different scales. "
                f"Use a larger l2 than {l2:g}"
            )
        rows.append(fitted)
        counts.append(int(known.sum()))
    found = np.stack(rows) @ back
    return FittedHeads(found[:, :-1], found[:, -1], tuple(counts))


def _columns(features: NDArray[np.floating], *, standardise: bool) -> tuple[Floats, Floats]:
    """The columns (n, r + 1) of the regression, the last for the bias, and the matrix (r + 1, d + 1) that turns its
    weights into those of the features.

    With more features than texts, r is the number of texts: the penalty leaves no weight outside the space that the
    texts span.
    """
    x = features.astype(np.float64)
    n, d = x.shape
    back = np.eye(d + 1)
    if not np.isfinite(x).all():
        return x, back  # `_fit` refuses it
    if standardise:
        mean, deviation = x.mean(0), x.std(0)
        scale = np.divide(1.0, deviation, out=np.zeros(d), where=deviation > 0)
        x = (x - mean) * scale
        back = np.diag(np.append(scale, 1.0))
        back[:-1, -1] = -mean * scale
    if d > n:
        left, sizes, right = np.linalg.svd(x, full_matrices=False)
        x, turned = left * sizes, np.zeros((len(sizes) + 1, d + 1))
        turned[:-1, :-1], turned[-1, -1] = right, 1.0
        back = turned @ back
    return np.column_stack((x, np.ones(n))), back


def _fit(x: Floats, sign: Floats, weight: Floats, l2: float) -> Floats | None:
    """Weights and bias of one category, (d + 1,), by Newton's method with halved steps; None if it fails.

    x (n, d + 1); sign (n,) 1 for a positive label and -1 for a negative one; weight (n,) of each text.
    """
    if not np.isfinite(x).all():
        return None
    penalty = np.full(x.shape[1], l2)
    penalty[-1] = 0.0
    w = np.zeros(x.shape[1])
    loss = _loss(w, x, sign, weight, penalty)
    for _ in range(_MAX_STEPS):
        wrong = 0.5 - 0.5 * np.tanh(0.5 * sign * (x @ w))  # the probability of the other label
        gradient = penalty * w - x.T @ (weight * sign * wrong)
        hessian = (x * (weight * wrong * (1 - wrong))[:, None]).T @ x + np.diag(penalty)
        hessian[-1, -1] += 1e-12  # if all probabilities are 0 or 1
        try:
            step = np.linalg.solve(hessian, gradient)
        except np.linalg.LinAlgError:
            return None
        promised = float(gradient @ step)
        if not np.isfinite(promised):
            return None
        if promised <= _TOLERANCE * max(1.0, loss):  # smaller decreases would be lost in the rounding of the loss
            return w - step
        size = 1.0
        while (after := _loss(w - size * step, x, sign, weight, penalty)) > loss - 1e-4 * size * promised:
            size /= 2
            if size < 2.0**-_MAX_HALVINGS:
                return None
        w, loss = w - size * step, after
    return None


def _loss(w: Floats, x: Floats, sign: Floats, weight: Floats, penalty: Floats) -> float:
    return float(weight @ np.logaddexp(0.0, -sign * (x @ w)) + penalty @ (w * w) / 2)
