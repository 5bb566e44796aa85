"""Drop documents whose score in a category of undesired content is too high. The caller brings the scoring stage.

data_prep knows no model: launch/moderation/filter_stage.py makes the stage, which calls `filter_shard`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.documents.counts import Tally
from data_prep.documents.quarantine import OUTSIDE, Quarantine
from data_prep.documents.shards import Document, read_shard, write_shard
from data_prep.documents.traces import write_trace
from data_prep.execution.tasks import Stage, TaskResult
from gpt.errors import ConfigError

STEP = "moderation"
_CHUNK = 512  # documents that are scored together
_SCORE_BINS = 20

ScoreTexts = Callable[[Sequence[str]], npt.NDArray[np.float64]]  # n texts -> (n, c)


@dataclass(frozen=True)
class ModerationConfig:
    """The [moderation] section of a recipe: a classifier run as a filter. Without `run` the stage is skipped.

    It comes after deduplication, and writes the scores of kept documents to their metadata.
    """

    run: Path | None = None
    """The directory of a classifier run, or one checkpoint in it."""
    drop: dict[str, float] = field(default_factory=dict)
    """The least score of a category that drops a document: { S = 0.8, H = 0.9 }. Empty: nothing is dropped, and the
    scores are only written."""
    window: int | None = None
    """Tokens of a window; a longer document has the largest score of its windows. `data.seq_len` of the run by default.
    """
    device: str = "cpu"
    """Device of each worker: cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        if self.run is None and self.drop:
            raise ConfigError(
                "moderation.drop needs moderation.run, a classifier run. Set it, or remove moderation.drop"
            )
        for category, least in self.drop.items():
            if isinstance(least, bool) or not 0 < least <= 1:
                raise ConfigError(
                    f"moderation.drop: {category} = {least} is invalid: must be above 0 and at most 1, such as 0.8"
                )

    @property
    def rule(self) -> "ModerationRule":
        """The settings that the stage depends on. The run's files are inputs: their content counts."""
        return ModerationRule(tuple(sorted(self.drop.items())), self.window, self.device)


@dataclass(frozen=True)
class ModerationRule:
    """`drop`: (category, least score that drops a document)."""

    drop: tuple[tuple[str, float], ...] = ()
    window: int | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class ModerationStage:
    """A stage that scores the documents of a shard, and the files that decide its scores; `files` are its inputs."""

    stage: Stage
    files: tuple[Path, ...]


def check_moderation(config: ModerationConfig, given: ModerationStage | None) -> None:
    """ConfigError: the recipe names a run, but the caller brings no stage that could score with it."""
    if config.run is not None and given is None:
        raise ConfigError(
            "moderation.run is invalid here: only `triaxial prepare` and triaxial.prepare score with a run"
        )


def filter_shard(
    rule: ModerationRule,
    inputs: tuple[Path, ...],
    outputs: tuple[Path, ...],
    *,
    categories: Sequence[str],
    score: ScoreTexts,
) -> TaskResult:
    """The body of a stage function: a shard to (shard, trace), with `moderation` added to the metadata.

    Facts: `category_scores`, for each category the documents by score, in bins named by their lower edge.
    """
    limits = [(categories.index(name), name, least) for name, least in rule.drop]
    names = [f"{number / _SCORE_BINS:.2f}" for number in range(_SCORE_BINS)]
    bins = {category: dict.fromkeys(names, 0) for category in categories}
    with (
        write_shard(outputs[0]) as write,
        write_trace(outputs[1]) as trace,
        Quarantine(STEP, inputs, outputs) as quarantine,
    ):
        tally = Tally(STEP, trace)
        for document, row in _scored(read_shard(inputs[0]), score, quarantine, tally):
            found = {name: round(float(p), 6) for name, p in zip(categories, row, strict=True)}
            for name, p in found.items():
                bins[name][names[min(int(p * _SCORE_BINS), _SCORE_BINS - 1)]] += 1
            over = next(((name, found[name]) for _, name, least in limits if found[name] >= least), None)
            if over is not None:
                tally.drop(f"score_{over[0]}", document.n_bytes, document.id, detail=f"score {over[1]}")
                continue
            tally.keep(document.n_bytes, document.n_bytes)
            write(Document(document.id, document.text, {**document.metadata, STEP: found}))
    return TaskResult([tally.counts()], {"category_scores": bins})


def _scored(
    documents: Iterable[Document], score: ScoreTexts, quarantine: Quarantine, tally: Tally
) -> Iterator[tuple[Document, Any]]:
    """Each document with its scores (c,). If a chunk fails, its documents are scored one by one."""

    def finite(texts: Sequence[str]) -> npt.NDArray[np.float64]:
        rows = score(texts)
        if not np.isfinite(rows).all():
            raise ValueError("a score is NaN or infinite")
        return rows

    stream = iter(documents)
    while chunk := list(islice(stream, _CHUNK)):
        try:
            rows = finite([document.text for document in chunk])
        except OUTSIDE:
            raise
        except Exception:
            yield from quarantine.each(chunk, lambda document: finite([document.text])[0], tally)
        else:
            yield from zip(chunk, rows, strict=True)
