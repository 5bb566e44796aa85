"""A classifier run that scores texts: windows of long ones, calibration, thresholds, and the version of its scores."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gpt.errors import ConfigError
from gpt.moderation.taxonomy import Taxonomy
from gpt.post_training.sequence_scores import score_sequences
from launch.config.run_arguments import BATCH_TOKENS
from launch.moderation.decisions import Decisions
from launch.moderation.windows import Ints, batch_shape, largest, windows_of
from launch.runs.open_engine import OpenedEngine
from parallel.checkpoint.handle import Checkpoint
from parallel.checkpoint.manifest import MANIFEST

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class OpenedClassifier:
    """A classifier run with the weights of a checkpoint.

    Its engine gives logits (n, t, c), or hidden states (n, t, d) if it was opened for features. `window`: tokens of a
    window, at most the model's context. `decisions`: calibration and thresholds.
    """

    run: OpenedEngine
    taxonomy: Taxonomy
    version: str
    window: int
    batch_tokens: int = BATCH_TOKENS
    decisions: Decisions = field(default_factory=Decisions)
    gives_features: bool = False

    @property
    def categories(self) -> tuple[str, ...]:
        return self.taxonomy.ids

    @property
    def thresholds(self) -> Mapping[str, float]:
        return self.decisions.thresholds

    def scores(self, texts: Sequence[str]) -> Scores:
        """Probabilities (n, c) of the categories, calibrated if the run is, on every rank. Every rank must call it.

        A text longer than a window is cut into windows that overlap, and has their largest score of each category.
        """
        return self.scores_of(self.encoded(texts))

    def encoded(self, texts: Sequence[str]) -> list[Ints]:
        """The tokens of each text, without the end-of-document token."""
        return [np.asarray(ids, dtype=np.int64) for ids in self.run.tokenizer.encode_arrays(texts)]

    def scores_of(self, tokens: Sequence[Ints], *, advance: Callable[[int], None] = lambda n: None) -> Scores:
        """As `scores`, of texts given as tokens. `advance` gets the number of windows that are done."""
        assert not self.gives_features, "opened for features, without a head"
        if not tokens:
            return np.zeros((0, len(self.categories)))
        windows = [self._windows(ids) for ids in tokens]
        logits = self._values([one for of_text in windows for one in of_text], advance)
        if not np.isfinite(logits).all():
            raise ConfigError(
                f"{self.run.run_directory}: the model of step {self.run.checkpoint.step} gives scores that are no "
                f"numbers. Use an earlier checkpoint: --step"
            )
        probabilities = 0.5 * (1.0 + np.tanh(0.5 * logits))  # a sigmoid that never overflows
        found = largest(probabilities, [len(of_text) for of_text in windows])
        return self.decisions.applied(found, self.categories)

    def n_windows(self, tokens: Sequence[Ints]) -> list[int]:
        """The number of windows of each text."""
        return [len(self._windows(ids)) for ids in tokens]

    def features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The representation (n, d) of each text, the hidden state of its last token or the mean over its tokens; of
        its first window, if it is long. Every rank must call it. Only of a run opened for features."""
        assert self.gives_features, "open the run with features=True"
        values = self._values([self._windows(ids)[0] for ids in self.encoded(texts)], lambda n: None)
        return values.reshape(len(texts), -1).astype(np.float32)

    def _windows(self, ids: Ints) -> list[Ints]:
        return windows_of(ids, window=self.window, end=self.run.tokenizer.end_of_document_id)

    def _values(self, sequences: Sequence[Ints], advance: Callable[[int], None]) -> Scores:
        """The engine's values at the last token of each sequence, (m, c), in rows with little padding."""
        if not sequences:
            return np.zeros((0, 0))
        shape = batch_shape(
            [len(ids) for ids in sequences],
            batch_tokens=self.batch_tokens,
            multiple=self.run.tensor,
            data_size=self.run.engine.data_size,
        )
        found = score_sequences(
            self.run.engine,
            [sequences[i] for i in shape.order],
            row_tokens=shape.row_tokens,
            rows_at_once=shape.rows_at_once,
            advance=advance,
        )
        values = np.empty_like(found)
        values[shape.order] = found
        return values


def version_of(checkpoint: Checkpoint, taxonomy: Taxonomy, decisions: Decisions) -> str:
    """Taxonomy, step, and a digest of the weights, the taxonomy and the calibration: all that decides a score."""
    digest = hashlib.sha256((checkpoint.path / MANIFEST).read_bytes())
    digest.update((taxonomy.digest + decisions.digest).encode())
    return f"{taxonomy.name}-{taxonomy.version}-step-{checkpoint.step}-{digest.hexdigest()[:12]}"
