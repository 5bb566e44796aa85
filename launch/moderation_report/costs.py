"""The cost of labels: number, positives and time by pipeline and by labeller, from files of `moderate label`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt.errors import ConfigError
from gpt.moderation.agreement import CategoryAgreement, agreements
from gpt.moderation.label_files import read_records
from gpt.moderation.taxonomy import Taxonomy
from launch.labelling.answers import LabelAnswer, answer_of

MAX_SECONDS = 600.0  # of one label; more is a break


@dataclass(frozen=True)
class LabelCost:
    """The labels of one pipeline or labeller. `positives`: positive in any category; `seconds`: of `timed` ones."""

    name: str
    labels: int
    positives: int
    by_category: Mapping[str, int]
    seconds: float
    timed: int
    skipped: int

    @property
    def positive_share(self) -> float:
        """Positives a label."""
        return self.positives / self.labels if self.labels else 0.0

    @property
    def seconds_a_label(self) -> float | None:
        return self.seconds / self.timed if self.timed else None

    @property
    def seconds_a_positive(self) -> float | None:
        """The time for one positive text, at the mean time of a label."""
        each = self.seconds_a_label
        return None if each is None or not self.positives else each * self.labels / self.positives


@dataclass(frozen=True)
class LabelCosts:
    """All files together, and the same labels divided in two ways; agreement of labellers."""

    total: LabelCost
    by_pipeline: tuple[LabelCost, ...]
    by_labeller: tuple[LabelCost, ...]
    agreement: tuple[CategoryAgreement, ...]


def label_costs(paths: Sequence[Path], taxonomy: Taxonomy) -> LabelCosts:
    """Read the files; the last line of a labeller about a text counts. ConfigError: no line is a label."""
    answers: dict[tuple[str, str], tuple[LabelAnswer, str]] = {}
    for path in paths:
        for _, record in read_records(path):
            answer, is_undone = answer_of(_plain(record))
            if answer is None:
                continue
            key = answer.text_id, answer.labeller
            answers.pop(key, None)
            if not is_undone:
                answers[key] = answer, str(record.get("pipeline") or "")
    if not answers:
        raise ConfigError(f"--labelled {paths[0]} has no answer. Give files that `triaxial moderate label` wrote.")
    found = list(answers.values())
    labels: dict[str, dict[str, Mapping[str, int | None]]] = {}
    for answer, _ in found:
        if not answer.is_skipped:
            labels.setdefault(answer.labeller, {})[answer.text_id] = answer.labels
    pipelines = dict.fromkeys(pipeline for _, pipeline in found)
    names = dict.fromkeys(answer.labeller for answer, _ in found)
    return LabelCosts(
        total=_cost("all", (answer for answer, _ in found), taxonomy),
        by_pipeline=tuple(
            _cost(name or "not named", (answer for answer, pipeline in found if pipeline == name), taxonomy)
            for name in pipelines
        ),
        by_labeller=tuple(_cost(name, (one for one, _ in found if one.labeller == name), taxonomy) for name in names),
        agreement=tuple(agreements(labels, taxonomy.ids)),
    )


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    return {**record, "id": str(record.get("id")) if record.get("id") is not None else None}


def _cost(name: str, answers: Iterable[LabelAnswer], taxonomy: Taxonomy) -> LabelCost:
    given = list(answers)
    kept = [one for one in given if not one.is_skipped]
    times = [min(one.seconds, MAX_SECONDS) for one in kept if one.seconds is not None]
    return LabelCost(
        name=name,
        labels=len(kept),
        positives=sum(any(value == 1 for value in one.labels.values()) for one in kept),
        by_category={id_: sum(one.labels.get(id_) == 1 for one in kept) for id_ in taxonomy.ids},
        seconds=sum(times),
        timed=len(times),
        skipped=len(given) - len(kept),
    )
