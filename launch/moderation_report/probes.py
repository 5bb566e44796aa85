"""Results of `triaxial moderate probe`, as the report shows them: functional tests and counterfactual gaps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt.errors import ConfigError
from gpt.files.json_files import read_json_object
from gpt.files.json_rules import Fields, Finite, JsonRule, ListOf, Text, Whole


@dataclass(frozen=True)
class _Number:
    """A finite number, or null for one that is undefined."""

    def fault(self, value: Any, where: str) -> str | None:
        return None if value is None else Finite().fault(value, where)


_RESULT = Fields({"function": Text(), "cases": Whole(), "right": Whole()}, optional={"target": Text()})
_SUITE = Fields({"category": Text(), "results": ListOf(_RESULT)}, optional={"suite": Text()})
_WORD = Fields({"word": Text(), "gap": _Number(), "sentences": Whole()}, optional={"subtype": Text()})
_GAP: JsonRule = Fields(
    {"category": Text(), "sentences": Whole(), "mean_range": _Number(), "worst_range": _Number()},
    optional={"false_positive_share": _Number(), "auroc": _Number(), "words": ListOf(_WORD)},
)
_RULES = Fields(
    optional={
        "model": Text(),
        "functional": ListOf(_SUITE),
        "counterfactuals": ListOf(_GAP),
    }
)


@dataclass(frozen=True)
class FunctionalCell:
    """Cases of one function and target, and how many were decided rightly."""

    cases: int
    right: int

    @property
    def share(self) -> float:
        return self.right / self.cases if self.cases else math.nan


@dataclass(frozen=True)
class FunctionalSuite:
    """A suite on one category. `cells`: by function and target; target "" is all cases of a function."""

    suite: str
    category: str
    cells: Mapping[tuple[str, str], FunctionalCell]

    @property
    def functions(self) -> list[str]:
        return list(dict.fromkeys(function for function, _ in self.cells))

    @property
    def targets(self) -> list[str]:
        """The targets with "" first."""
        return sorted({target for _, target in self.cells}, key=lambda target: (target != "", target))


@dataclass(frozen=True)
class GapOfCategory:
    """Counterfactuals of one category. `words`: (word, its mean gap, sentences), the largest distance from 0 first."""

    category: str
    sentences: int
    mean_range: float | None
    worst_range: float | None
    false_positive_share: float | None
    words: tuple[tuple[str, float, int], ...]


@dataclass(frozen=True)
class ProbeResults:
    """The content of one file."""

    model: str
    functional: tuple[FunctionalSuite, ...]
    gaps: tuple[GapOfCategory, ...]


def read_probes(path: Path) -> ProbeResults:
    """Read a file of `moderate probe --json`. ConfigError: it is none, or it is damaged."""
    found = read_json_object(path)
    if fault := _RULES.fault(found, ""):
        raise ConfigError(f"{path} has no results of probes: {fault}. Run `triaxial moderate probe` again.")
    if not found.get("functional") and not found.get("counterfactuals"):
        raise ConfigError(f"{path} has neither functional tests nor counterfactuals. Give a file of `moderate probe`.")
    suites = tuple(_suite(one) for one in found.get("functional", ()))
    return ProbeResults(
        str(found.get("model", "")), suites, tuple(_gap(one) for one in found.get("counterfactuals", ()))
    )


def probes_of(paths: Sequence[Path], models: Sequence[str]) -> list[list[ProbeResults]]:
    """Read all files and divide them among the versions: by the model that they name, else in the order given."""
    found: list[list[ProbeResults]] = [[] for _ in models]
    for i, path in enumerate(paths):
        probes = read_probes(path)
        place = models.index(probes.model) if probes.model and probes.model in models else min(i, len(models) - 1)
        found[place].append(probes)
    return found


def _suite(record: Mapping[str, Any]) -> FunctionalSuite:
    sums: dict[tuple[str, str], list[int]] = {}
    named = [one for one in record["results"] if one.get("target")]
    totals = {one["function"] for one in record["results"] if not one.get("target")}
    for one in record["results"]:
        _add(sums, (one["function"], one.get("target", "")), one)
    for one in named:
        if one["function"] not in totals:  # all cases of a function are its targets together
            _add(sums, (one["function"], ""), one)
    cells = {key: FunctionalCell(cases, right) for key, (cases, right) in sums.items()}
    return FunctionalSuite(record.get("suite", ""), record["category"], cells)


def _add(sums: dict[tuple[str, str], list[int]], key: tuple[str, str], one: Mapping[str, Any]) -> None:
    own = sums.setdefault(key, [0, 0])
    own[0] += one["cases"]
    own[1] += one["right"]


def _gap(record: Mapping[str, Any]) -> GapOfCategory:
    words = [
        (one["word"], float(one["gap"]), one["sentences"]) for one in record.get("words", ()) if one["gap"] is not None
    ]
    return GapOfCategory(
        category=record["category"],
        sentences=record["sentences"],
        mean_range=record["mean_range"],
        worst_range=record["worst_range"],
        false_positive_share=record.get("false_positive_share"),
        words=tuple(sorted(words, key=lambda one: -abs(one[1]))),
    )
