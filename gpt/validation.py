"""The loss on validation corpora while a run trains; changes no weight."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch

from gpt.dataset import ValidationData
from gpt.engine import Batch, Engine, Totals
from gpt.loss import IGNORE


def evaluate(
    engine: Engine,
    corpora: Mapping[str, ValidationData],
    *,
    tokens: int,
    micro_batch_size: int,
    before_each: Callable[[], None] = lambda: None,
) -> dict[str, Totals]:
    """The loss on each corpus, from its start, at most `tokens` of each. Every rank calls it and has the result.

    `before_each` is called before each batch.
    """
    results = {}
    for name, corpus in corpora.items():
        windows = min(corpus.n_windows, max(1, tokens // corpus.seq_len))
        batches = validation_batches(corpus, engine, windows, micro_batch_size)
        results[name] = engine.evaluate(_announced(batches, before_each))
    return results


def _announced(batches: Iterator[Batch], before_each: Callable[[], None]) -> Iterator[Batch]:
    for batch in batches:
        before_each()
        yield batch


def validation_values(results: Mapping[str, Totals]) -> dict[str, float | int]:
    """What is logged of an evaluation."""
    values: dict[str, float | int] = {}
    for name, totals in results.items():
        values[f"validation/{name}/loss"] = totals.mean
        values[f"validation/{name}/perplexity"] = float(np.exp(min(totals.mean, 700.0)))
    return values


def validation_batches(corpus: ValidationData, engine: Engine, windows: int, per_rank: int) -> Iterator[Batch]:
    """Equally many batches of one shape on every data rank; the missing windows of the last ones count nothing."""
    at_once = per_rank * engine.data_size
    for start in range(0, windows, at_once):
        begin = min(windows, start + engine.data_rank * per_rank)
        end = min(windows, begin + per_rank)
        tokens = torch.zeros(per_rank, corpus.seq_len + 1, dtype=torch.int64)
        targets = torch.full((per_rank, corpus.seq_len), IGNORE, dtype=torch.int64)
        if end > begin:
            tokens[: end - begin] = torch.from_numpy(corpus.batch(begin, end))
            targets[: end - begin] = tokens[: end - begin, 1:]
        yield Batch(tokens[:, :-1].contiguous(), targets)
