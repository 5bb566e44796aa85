"""Agreement of labellers by category: Cohen's kappa (1960) with a large-sample interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

from gpt.evaluation.intervals import Interval


@dataclass(frozen=True)
class CategoryAgreement:
    """Two labellers on one category: the texts that both have labelled, and kappa. The counts are of texts."""

    category: str
    first: str
    second: str
    both: int  # positive by both
    only_first: int
    only_second: int
    neither: int
    kappa: Interval

    @property
    def n(self) -> int:
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def observed(self) -> float:
        """The share of texts with equal labels; NaN without a text."""
        return (self.both + self.neither) / self.n if self.n else math.nan


def agreements(
    labels: Mapping[str, Mapping[str, Mapping[str, int | bool | None]]], categories: Sequence[str]
) -> list[CategoryAgreement]:
    """Compare each two labellers that share a text, category by category.

    `labels`: labeller -> id of a text -> category -> label; None or absent is unknown and does not count.
    """
    found = []
    for first, second in combinations(sorted(labels), 2):
        shared = labels[first].keys() & labels[second].keys()
        for category in categories if shared else ():
            pairs = [(labels[first][id_].get(category), labels[second][id_].get(category)) for id_ in shared]
            known = [(bool(a), bool(b)) for a, b in pairs if a is not None and b is not None]
            both, only_first, only_second, neither = (
                known.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))
            )
            kappa = cohen_kappa(both, only_first, only_second, neither)
            found.append(CategoryAgreement(category, first, second, both, only_first, only_second, neither, kappa))
    return found


def cohen_kappa(both: int, only_first: int, only_second: int, neither: int, *, confidence: float = 0.95) -> Interval:
    """Kappa of two labellers' yes and no: agreement beyond chance, 1 at most.

    The bounds are those of Fleiss, Cohen and Everitt (1969), which need some dozens of texts. NaN if both labellers
    give every text the same one label, because chance alone then agrees always.
    """
    n = both + only_first + only_second + neither
    if not n:
        return Interval(math.nan, math.nan, math.nan)
    p = [[both / n, only_first / n], [only_second / n, neither / n]]
    rows, columns = [sum(row) for row in p], [p[0][i] + p[1][i] for i in range(2)]
    observed = p[0][0] + p[1][1]
    chance = rows[0] * columns[0] + rows[1] * columns[1]
    if math.isclose(chance, 1.0):
        return Interval(math.nan, math.nan, math.nan)
    kappa = (observed - chance) / (1 - chance)
    equal = sum(p[i][i] * ((1 - chance) - (columns[i] + rows[i]) * (1 - observed)) ** 2 for i in range(2))
    unequal = sum(p[i][1 - i] * (columns[i] + rows[1 - i]) ** 2 for i in range(2)) * (1 - observed) ** 2
    variance = (equal + unequal - (observed * chance - 2 * chance + observed) ** 2) / (n * (1 - chance) ** 4)
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * math.sqrt(max(variance, 0.0))
    return Interval(kappa, max(-1.0, kappa - half), min(1.0, kappa + half))
