"""Run the probes on files: functional suites, counterfactuals, and labelled texts. The results have no text."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpt.errors import ConfigError
from gpt.moderation.label_files import read_records
from gpt.moderation.labels import LabelledText, label_matrix
from gpt.moderation.probes.counterfactuals import CounterfactualGap, counterfactual_gap, counterfactuals
from gpt.moderation.probes.functional import FunctionResult, functional_cases, functional_results
from gpt.moderation.probes.perturbations import PerturbationEffect, perturbation_effects
from gpt.moderation.probes.reduction import Reduction, reduce_texts
from gpt.moderation.probes.scoring import Scores, checked_scores
from gpt.moderation.probes.slices import SliceMeasures, length_groups, slice_measures
from launch.moderation.loop.scorer import NamedScorer


def probe_suite(scorer: NamedScorer, path: Path, category: str, *, by_target: bool) -> list[FunctionResult]:
    """Run a functional suite on one category. ConfigError: as `read_records` and `functional_cases`."""
    rows = [(f"{path}, {place}", fields) for place, fields in read_records(path)]
    i = scorer.taxonomy.index(category)
    threshold = scorer.threshold_list[i]
    cases = functional_cases(rows)
    found = functional_results(scorer.score, cases, i, threshold=threshold)
    if by_target and any(case.target for case in cases):
        found += [
            one for one in functional_results(scorer.score, cases, i, threshold=threshold, by_target=True) if one.target
        ]
    return found


def probe_counterfactuals(
    scorer: NamedScorer, templates: Path, words: Path, categories: Sequence[str], *, seed: int
) -> list[CounterfactualGap]:
    """Fill the templates, and measure the categories. ConfigError: as `counterfactuals`."""
    sentences = counterfactuals(
        [fields for _, fields in read_records(templates)],
        [fields for _, fields in read_records(words)],
        seed=seed,
        where=str(templates),
    )
    found = counterfactual_gap(scorer.score, sentences, scorer.taxonomy.ids, thresholds=scorer.threshold_list)
    return [one for one in found if one.category in categories]


def probe_perturbations(
    scorer: NamedScorer, texts: Sequence[LabelledText], categories: Sequence[str], *, share: float, seed: int
) -> list[PerturbationEffect]:
    """Rewrite the texts that are labelled positive in one of the categories."""
    chosen = [one.text for one in texts if any(one.labels.get(name) for name in categories)]
    found = perturbation_effects(
        scorer.score, chosen, scorer.taxonomy.ids, thresholds=scorer.threshold_list, share=share, seed=seed
    )
    return [one for one in found if one.category in categories]


def probe_reduction(
    scorer: NamedScorer, texts: Sequence[LabelledText], category: str, *, limit: float, most: int
) -> tuple[dict[str, Any], list[tuple[LabelledText, Reduction]]]:
    """Reduce up to `most` texts with the highest scores of a category. Returns a summary, and the reductions."""
    i = scorer.taxonomy.index(category)
    scores = checked_scores(scorer.score, [one.text for one in texts])[:, i]
    order = sorted(range(len(texts)), key=lambda row: (-scores[row], texts[row].id))
    chosen = [texts[row] for row in order if scores[row] >= limit][:most]
    reduced = reduce_texts(scorer.score, [one.text for one in chosen], i, limit=limit)
    found = [(text, one) for text, one in zip(chosen, reduced, strict=True) if one is not None]
    summary: dict[str, Any] = {"category": category, "limit": limit, "texts": len(chosen), "reduced": len(found)}
    if found:
        summary["median_characters_before"] = statistics.median(one.characters_before for _, one in found)
        summary["median_characters_after"] = statistics.median(one.characters_after for _, one in found)
        summary["median_words_after"] = statistics.median(len(one.kept) for _, one in found)
    return summary, found


def probe_slices(
    scorer: NamedScorer, texts: Sequence[LabelledText], fields: Sequence[str], *, resamples: int
) -> list[SliceMeasures]:
    """Measure the labelled texts by the fields of their groups, and by length."""
    labels = label_matrix(texts, scorer.taxonomy, contradictory="unknown")
    scores: Scores = checked_scores(scorer.score, [one.text for one in texts])
    groups: dict[str, list[str]] = {name: [one.groups.get(name, "") for one in texts] for name in fields}
    for name, values in groups.items():
        if not any(values):
            raise ConfigError(f"--slice-by {name} is invalid: no text has a group of this name.")
    groups["length"] = length_groups([one.text for one in texts])
    return slice_measures(
        labels, scores, scorer.taxonomy.ids, groups, thresholds=scorer.threshold_list, resamples=resamples
    )


def as_json(values: Sequence[Any]) -> list[Mapping[str, Any]]:
    """Dataclasses as plain values."""
    return [asdict(one) for one in values]
