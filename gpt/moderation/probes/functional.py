"""Functional tests: short texts, each of one function such as "negated hate", with the decision that is right.

One file format reads HateCheck (Röttger and others, 2021), XSTest (2024) and a team's own suites: rows of a CSV file or
of JSON lines. Columns are found by name, so neither file needs a conversion:

| column | meaning | HateCheck | XSTest |
|---|---|---|---|
| `function` | the function that a case tests | `functionality` | `type` |
| `text` | the text | `test_case` | `prompt` |
| `label` | positive or negative | `label_gold`: hateful, non-hateful | `label`: unsafe, safe |
| `id`, `target` | optional | `case_id`, `target_ident` | `id` |
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt.errors import ConfigError
from gpt.evaluation.intervals import Interval
from gpt.moderation.measures.intervals import exact_interval
from gpt.moderation.probes.scoring import Score, checked_scores

_NAMES: Mapping[str, tuple[str, ...]] = {
    "function": ("function", "functionality", "type"),
    "text": ("text", "test_case", "prompt"),
    "label": ("label_gold", "label"),
    "id": ("id", "case_id"),
    "target": ("target", "target_ident"),
}
_POSITIVE = {"1", "true", "positive", "hateful", "unsafe"}
_NEGATIVE = {"0", "false", "negative", "non-hateful", "safe"}


@dataclass(frozen=True)
class FunctionalCase:
    id: str
    function: str
    text: str
    positive: bool
    target: str = ""


@dataclass(frozen=True)
class FunctionResult:
    """Cases of one function (and target, if measured by target) that the decision gets right; the interval is exact."""

    function: str
    target: str
    positive: bool | None
    cases: int
    right: int
    accuracy: Interval
    mean_score: float


def functional_cases(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> list[FunctionalCase]:
    """Make cases of (place, fields) rows. ConfigError: a field is missing, a label has another value, or no row."""
    found = []
    for where, row in rows:
        values = {name: _value(row, name) for name in _NAMES}
        for name in ("function", "text", "label"):
            if not values[name]:
                raise ConfigError(f"{where} has no column '{name}'. Use one of {', '.join(_NAMES[name])}")
        label = values["label"].lower()
        if label not in _POSITIVE | _NEGATIVE:
            raise ConfigError(
                f"{where}: the label is invalid: must be one of {', '.join(sorted(_POSITIVE))}, or "
                f"{', '.join(sorted(_NEGATIVE))}"
            )
        found.append(
            FunctionalCase(
                values["id"] or where, values["function"], values["text"], label in _POSITIVE, values["target"]
            )
        )
    if not found:
        raise ConfigError("the functional suite has no cases. Give a file with a function, a text and a label a row")
    return found


def functional_results(
    score: Score, cases: Sequence[FunctionalCase], category: int, *, threshold: float = 0.5, by_target: bool = False
) -> list[FunctionResult]:
    """Compare the decision `score >= threshold` with each case's label, by function, in the order of the file."""
    scores = checked_scores(score, [case.text for case in cases])[:, category]
    rows: dict[tuple[str, str], list[int]] = {}
    for i, case in enumerate(cases):
        rows.setdefault((case.function, case.target if by_target else ""), []).append(i)
    found = []
    for (function, target), index in rows.items():
        labels = np.array([cases[i].positive for i in index])
        right = int(((scores[index] >= threshold) == labels).sum())
        found.append(
            FunctionResult(
                function=function,
                target=target,
                positive=bool(labels[0]) if (labels == labels[0]).all() else None,
                cases=len(index),
                right=right,
                accuracy=exact_interval(right, len(index)),
                mean_score=float(scores[index].mean()),
            )
        )
    return found


def totals(results: Sequence[FunctionResult]) -> dict[str, Interval]:
    """Return the share of right decisions: of all cases, and of functions that are positive or negative throughout."""
    groups = {
        "all": list(results),
        "positive": [one for one in results if one.positive],
        "negative": [one for one in results if one.positive is False],
    }
    return {
        name: exact_interval(sum(one.right for one in chosen), sum(one.cases for one in chosen))
        for name, chosen in groups.items()
    }


def _value(row: Mapping[str, Any], name: str) -> str:
    for column in _NAMES[name]:
        value = row.get(column)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        return str(int(value)) if isinstance(value, bool) else str(value).strip()
    return ""
