"""Fit linear heads to the features of a frozen trunk: logistic regression for each category, in seconds.

    minimise over w, b of l2 / 2 * |w|^2 + sum over texts with a known label of weight * cross-entropy(w x + b, label)

It is scikit-learn's LogisticRegression with C = 1 / l2, in float64. Newton's method needs about ten passes over the
features, and ends nearer to the minimum than L-BFGS, which needs hundreds. Memory: 8 d^2 bytes besides the features.
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
    l2: float | Mapping[str, float] = 1.0,
    standardise: bool = False,
    class_weights: Mapping[str, float] | None = None,
) -> FittedHeads:
    """Fit the head of each category of `ids` to features (n, d) and labels (n, c): 1, 0, NaN where unknown.

    `l2`: one penalty, or that of each category. `standardise`: the penalty is of weights for features of mean 0 and
    deviation 1; the result takes the features as they are. `class_weights`: factors of the loss of positive labels.
    ConfigError: a category lacks a positive or a negative label, or no fit is found, since features are not finite or
    on very different scales.
    """
    penalties = [l2[one] if isinstance(l2, Mapping) else l2 for one in ids]
    for penalty in penalties:
        check_l2(penalty)
    x, back = columns(features, standardise=standardise)
    rows, counts = [], []
    for category, column, penalty in zip(ids, labels.T, penalties, strict=True):
        known, sign, weight = known_labels(category, column, class_weights)
        fitted = minimum(x[known], sign, weight, penalty)
        if fitted is None:
            raise no_fit(category, penalty)
        rows.append(fitted)
        counts.append(int(known.sum()))
    found = np.stack(rows) @ back
    # copies, since torch cannot view a slice of one category as bytes when it saves
    return FittedHeads(found[:, :-1].copy(), found[:, -1].copy(), tuple(counts))


def check_l2(l2: float) -> None:
    if not 0 < l2 < float("inf"):
        raise ConfigError(f"l2 = {l2:g} is invalid: must be a number above 0. Use 1")


def no_fit(category: str, l2: float) -> ConfigError:
    return ConfigError(
        f"category '{category}': no head fits the features, which are not finite or on very different scales. "
        f"Use a larger l2 than {l2:g}"
    )


def known_labels(
    category: str, column: Floats, class_weights: Mapping[str, float] | None
) -> tuple[NDArray[np.bool_], Floats, Floats]:
    """Which of the labels (n,) are known, and of the m known ones the sign (m,), 1 or -1, and the weight (m,).

    ConfigError: no positive or no negative one.
    """
    known = ~np.isnan(column)
    label = column[known] > 0.5
    for n, word in ((int(label.sum()), "positive"), (int((~label).sum()), "negative")):
        if n == 0:
            raise ConfigError(
                f"category '{category}' has no {word} label in {len(column):,} texts, so no head can be fitted. "
                f"Label some, or leave the category out of the taxonomy"
            )
    return known, np.where(label, 1.0, -1.0), np.where(label, (class_weights or {}).get(category, 1.0), 1.0)


def columns(features: NDArray[np.floating], *, standardise: bool) -> tuple[Floats, Floats]:
    """The columns (n, r + 1) of the regression, the last for the bias, and the matrix (r + 1, d + 1) that turns its
    weights into those of the features.

    With more features than texts, r is the number of texts: the penalty leaves no weight outside the space that the
    texts span.
    """
    x = features.astype(np.float64)
    n, d = x.shape
    back = np.eye(d + 1)
    if not np.isfinite(x).all():
        return x, back  # `minimum` refuses it
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


def minimum(x: Floats, sign: Floats, weight: Floats, l2: float, *, start: Floats | None = None) -> Floats | None:
    """Weights and bias of one category, (d + 1,), by Newton's method with halved steps; None if it fails.

    x (n, d + 1); sign (n,) 1 for a positive label and -1 for a negative one; weight (n,) of each text. `start`: where
    the search starts, (d + 1,).
    """
    if not np.isfinite(x).all():
        return None
    penalty = np.full(x.shape[1], l2)
    penalty[-1] = 0.0
    w = np.zeros(x.shape[1]) if start is None else start
    loss = _loss(w, x, sign, weight, penalty)
    for _ in range(_MAX_STEPS):
        gradient = penalty * w - x.T @ (weight * sign * _wrong(w, x, sign))
        try:
            step = np.linalg.solve(hessian(w, x, sign, weight, l2), gradient)
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


def hessian(w: Floats, x: Floats, sign: Floats, weight: Floats, l2: float) -> Floats:
    """Second derivatives of the loss at w, (d + 1, d + 1)."""
    wrong = _wrong(w, x, sign)
    found: Floats = (x * (weight * wrong * (1 - wrong))[:, None]).T @ x
    found[np.diag_indices(len(w) - 1)] += l2
    found[-1, -1] += 1e-12  # if all probabilities are 0 or 1
    return found


def _wrong(w: Floats, x: Floats, sign: Floats) -> Floats:
    """The probability (n,) of the other label."""
    found: Floats = 0.5 - 0.5 * np.tanh(0.5 * sign * (x @ w))
    return found


def _loss(w: Floats, x: Floats, sign: Floats, weight: Floats, penalty: Floats) -> float:
    return float(weight @ np.logaddexp(0.0, -sign * (x @ w)) + penalty @ (w * w) / 2)
