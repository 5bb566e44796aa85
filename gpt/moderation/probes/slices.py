"""Measures by slice: the texts of one group, such as a language, or of a range of lengths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gpt.moderation.measures.intervals import RESAMPLES
from gpt.moderation.measures.ranking import Floats
from gpt.moderation.measures.summary import CategoryMeasures, category_measures

LENGTH_BOUNDS = (50, 200, 1_000)  # characters


@dataclass(frozen=True)
class SliceMeasures:
    """The measures of the texts with one value of a field, such as language = "de"."""

    field: str
    value: str
    texts: int
    measures: tuple[CategoryMeasures, ...]


def length_groups(texts: Sequence[str], bounds: Sequence[int] = LENGTH_BOUNDS) -> list[str]:
    """Return the range of each text's length in characters, such as "50-199"."""
    edges = [0, *bounds]
    names = [f"{low}-{high - 1}" for low, high in zip(edges, bounds, strict=False)] + [f"{edges[-1]}+"]
    return [names[int(np.searchsorted(bounds, len(text), side="right"))] for text in texts]


def slice_measures(
    labels: Floats,
    scores: Floats,
    categories: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    *,
    thresholds: Sequence[float] | None = None,
    min_texts: int = 20,
    resamples: int = RESAMPLES,
) -> list[SliceMeasures]:
    """Measure each value of each field, the largest slice first. Labels and scores (n, c); a field has n values.

    A text without a value ("") is in no slice. Slices with fewer than `min_texts` texts are one slice, "(others)".
    """
    found = []
    for field, values in groups.items():
        rows: dict[str, list[int]] = {}
        for i, value in enumerate(values):
            if value:
                rows.setdefault(value, []).append(i)
        small = [value for value, index in rows.items() if len(index) < min_texts]
        if len(small) > 1:
            rows["(others)"] = sorted(i for value in small for i in rows.pop(value))
        for value, index in sorted(rows.items(), key=lambda pair: (-len(pair[1]), pair[0])):
            measured = category_measures(
                labels[index], scores[index], categories, thresholds=thresholds, resamples=resamples
            )
            found.append(SliceMeasures(field, value, len(index), tuple(measured)))
    return found
