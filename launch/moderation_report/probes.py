"""Results of `triaxial moderate probe`, as the report shows them. The files hold no text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt.errors import ConfigError
from gpt.files.json_files import read_json_object
from gpt.files.json_rules import Fields, Finite, JsonRule, ListOf, Text, ValuesOf, Whole


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
_EFFECT = Fields({"category": Text(), "name": Text(), "flagged_before": Whole(), "still_flagged": Whole()})
_AUPRC = Fields({"category": Text(), "positives": Whole(), "auprc": Fields({"estimate": _Number()})})
_SLICE = Fields({"field": Text(), "value": Text(), "texts": Whole(), "measures": ListOf(_AUPRC)})
_REDUCED = Fields(
    {"reduced": Whole()}, optional={"median_characters_before": Finite(), "median_characters_after": Finite()}
)
_RULES = Fields(
    optional={
        "model": Text(),
        "functional": ListOf(_SUITE),
        "counterfactuals": ListOf(_GAP),
        "perturbations": ListOf(_EFFECT),
        "slices": ListOf(_SLICE),
        "reduction": ValuesOf(_REDUCED),
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
class SliceOfTexts:
    """The texts with one value of a field. `auprc`: (category, estimate or None, positives)."""

    field: str
    value: str
    texts: int
    auprc: tuple[tuple[str, float | None, int], ...]


@dataclass(frozen=True)
class ReducedTexts:
    """How short texts of a category get while their score stays high: median characters before and after."""

    category: str
    texts: int
    before: float
    after: float


@dataclass(frozen=True)
class ProbeResults:
    """The content of one file. `still_flagged`: (category, perturbation) -> texts flagged before, and still."""

    model: str
    functional: tuple[FunctionalSuite, ...] = ()
    gaps: tuple[GapOfCategory, ...] = ()
    still_flagged: Mapping[tuple[str, str], FunctionalCell] = field(default_factory=dict)
    slices: tuple[SliceOfTexts, ...] = ()
    reduced: tuple[ReducedTexts, ...] = ()


def read_probes(path: Path) -> ProbeResults:
    """Read a file of `moderate probe --json`. ConfigError: the file holds something else, or it is damaged."""
    found = read_json_object(path)
    if fault := _RULES.fault(found, ""):
        raise ConfigError(f"{path} has no results of probes: {fault}. Run `triaxial moderate probe` again.")
    if not any(found.get(key) for key in ("functional", "counterfactuals", "perturbations", "slices", "reduction")):
        raise ConfigError(f"{path} has no results of probes. Give a file that `triaxial moderate probe --json` wrote.")
    return ProbeResults(
        model=str(found.get("model", "")),
        functional=tuple(_suite(one) for one in found.get("functional", ())),
        gaps=tuple(_gap(one) for one in found.get("counterfactuals", ())),
        still_flagged={
            (one["category"], one["name"]): FunctionalCell(one["flagged_before"], one["still_flagged"])
            for one in found.get("perturbations", ())
        },
        slices=tuple(_slice(one) for one in found.get("slices", ())),
        reduced=tuple(
            ReducedTexts(name, one["reduced"], one["median_characters_before"], one["median_characters_after"])
            for name, one in found.get("reduction", {}).items()
            if one["reduced"] and "median_characters_before" in one and "median_characters_after" in one
        ),
    )


def probes_of(paths: Sequence[Path], models: Sequence[str]) -> list[list[ProbeResults]]:
    """Read all files and divide them among the versions: by the model that they name, else in the order given.

    ConfigError: as `read_probes`, or a file and the version at its place in the order name different models.
    """
    found: list[list[ProbeResults]] = [[] for _ in models]
    for i, path in enumerate(paths):
        probes = read_probes(path)
        index = models.index(probes.model) if probes.model in models else min(i, len(models) - 1)
        if probes.model and models[index] not in ("", probes.model):
            versions = ", ".join(filter(None, models))
            raise ConfigError(
                f"--probes {path} probed {probes.model}, which is none of the versions: {versions}. Probe one of them, "
                "or give the scores of that model."
            )
        found[index].append(probes)
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


def _slice(record: Mapping[str, Any]) -> SliceOfTexts:
    auprc = tuple((one["category"], one["auprc"]["estimate"], one["positives"]) for one in record["measures"])
    return SliceOfTexts(record["field"], record["value"], record["texts"], auprc)
