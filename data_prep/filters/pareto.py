"""Score every document by the quality classifier, and keep it by GPT-3's Pareto rule or by a threshold.

GPT-3 (arXiv 2005.14165, appendix A) keeps a document if numpy.random.pareto(9) > 1 - score. This is the Lomax
distribution, whose values start at 0, not at 1. The probability to keep is therefore exactly (2 - score) ** -9. Here
the draw is a hash of the document's id: every order, sharding and run keeps the same documents.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_prep.documents.counts import Tally
from data_prep.documents.quarantine import Quarantine
from data_prep.documents.shards import Document, keyed_hash, read_shard, write_shard
from data_prep.documents.traces import write_trace
from data_prep.execution.tasks import Stage, TaskResult
from data_prep.filters.quality_classifier import load_model, scorer
from gpt.errors import ConfigError

_SCORE_BINS = 20


@dataclass(frozen=True)
class KeepRule:
    """The rule of a score. `keep`: "pareto" draws with `alpha` and `seed`, "threshold" compares, "all" keeps all."""

    keep: Literal["pareto", "threshold", "all"] = "pareto"
    alpha: float = 9.0
    threshold: float = 0.5
    seed: int = 0

    def reason(self, document_id: str, score: float) -> str | None:
        """Return the reason to drop a document with this score, or None."""
        if self.keep == "pareto":
            # Python compares an integer with a float exactly, so every draw keeps a score of 1.
            drawn = keyed_hash(document_id, key=f"pareto {self.seed}") < keep_probability(score, self.alpha) * 2**64
            return None if drawn else "not_drawn"
        return "low_score" if self.keep == "threshold" and score < self.threshold else None


@dataclass(frozen=True)
class ClassifyConfig:
    """The [classify] section of a recipe. Without `model` the stage is skipped."""

    model: Path | None = None
    """A file of `triaxial prepare train-quality`."""
    keep: Literal["pareto", "threshold", "all"] = "pareto"
    """`pareto` keeps a document of score s with probability (2 - s) ** -`alpha`, drawn from its id and `seed`.
    `threshold` keeps scores of at least `threshold`. `all` keeps all and only writes `quality_score` to the metadata.
    """
    alpha: float = 9.0
    """Exponent of `pareto` (GPT-3: 9)."""
    threshold: float = 0.5
    """Least score that `threshold` keeps."""
    seed: int = 0
    """Draws the documents that `pareto` keeps."""

    def __post_init__(self) -> None:
        if not 0 < self.alpha < math.inf:
            raise ConfigError(f"classify.alpha = {self.alpha} is invalid: must be above 0 and finite. GPT-3 uses 9")
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"classify.threshold = {self.threshold} is invalid: must be between 0 and 1")

    @property
    def rule(self) -> KeepRule:
        """The settings that the stage depends on. The model is an input file: its content counts, not its name."""
        return KeepRule(self.keep, self.alpha, self.threshold, self.seed)


def keep_probability(score: float, alpha: float) -> float:
    """Return P(Lomax(alpha) > 1 - score). With alpha 9: .002 at score 0, .026 at .5, .65 at .95 and 1 at 1."""
    return float((2.0 - score) ** -alpha)


def classify_shard(config: KeepRule, inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> TaskResult:
    """Stage function: (shard, model) to (shard, trace), with `quality_score` added to the metadata.

    Facts: `scores` and `scores_kept`, documents by score before and after, in bins named by their lower edge.
    """
    score_of = scorer(load_model(inputs[1]))
    names = [f"{number / _SCORE_BINS:.2f}" for number in range(_SCORE_BINS)]
    before, after = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    with (
        write_shard(outputs[0]) as write,
        write_trace(outputs[1]) as trace,
        Quarantine("classify", inputs, outputs) as quarantine,
    ):
        tally = Tally("classify", trace)
        for document, score in quarantine.each(read_shard(inputs[0]), lambda document: score_of(document.text), tally):
            name = names[min(int(score * _SCORE_BINS), _SCORE_BINS - 1)]
            before[name] += 1
            reason = config.reason(document.id, score)
            if reason is not None:
                tally.drop(reason, document.n_bytes, document.id, detail=f"score {score}")
                continue
            after[name] += 1
            tally.keep(document.n_bytes, document.n_bytes)
            write(Document(document.id, document.text, {**document.metadata, "quality_score": score}))
    return TaskResult([tally.counts()], {"scores": before, "scores_kept": after})


CLASSIFY = Stage("classify", classify_shard)
