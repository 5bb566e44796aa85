"""The loss on validation corpora while a run trains; changes no weight."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping

import numpy as np
import torch

from gpt.data.dataset import DamagedSamples, Tokens, ValidationData
from gpt.losses.base import IGNORE
from gpt.training.engine import Batch, Engine, Totals


def evaluate(
    engine: Engine,
    corpora: Mapping[str, ValidationData],
    *,
    tokens: int,
    micro_batch_size: int,
    left_out: MutableMapping[str, dict[int, str]],
    before_each: Callable[[], None] = lambda: None,
) -> dict[str, Totals]:
    """The loss on each corpus, from its start, at most `tokens` of each. Every rank calls it and has the result.

    `left_out` are the windows of each corpus that are damaged and why; those that any rank finds are added to it, on
    all ranks, and the corpus is evaluated again without them. `before_each` is called before each batch.
    """
    results = {}
    for name, corpus in corpora.items():
        windows, without = min(corpus.n_windows, max(1, tokens // corpus.seq_len)), left_out.setdefault(name, {})
        while True:
            found: dict[int, str] = {}
            batches = validation_batches(corpus, engine, windows, micro_batch_size, without=without, found=found)
            results[name] = engine.evaluate(_announced(batches, before_each))
            new = {window: what for theirs in engine.exchange([*found.items()]) for window, what in theirs}
            if not new:
                break
            without.update(sorted(new.items()))
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


def validation_batches(
    corpus: ValidationData,
    engine: Engine,
    windows: int,
    per_rank: int,
    *,
    without: Mapping[int, str],
    found: MutableMapping[int, str],
) -> Iterator[Batch]:
    """Equally many batches of one shape on every data rank; the missing windows of the last ones count nothing, nor do
    those `without` which it is to be. Those that turn out to be damaged are added to `found`."""
    at_once = per_rank * engine.data_size
    for start in range(0, windows, at_once):
        begin = min(windows, start + engine.data_rank * per_rank)
        end = min(windows, begin + per_rank)
        tokens = torch.zeros(per_rank, corpus.seq_len + 1, dtype=torch.int64)
        targets = torch.full((per_rank, corpus.seq_len), IGNORE, dtype=torch.int64)
        for row, ids in _windows(corpus, begin, end, without, found):
            tokens[row] = torch.from_numpy(ids)
            targets[row] = tokens[row, 1:]
        yield Batch(tokens[:, :-1].contiguous(), targets)


def _windows(
    corpus: ValidationData, begin: int, end: int, without: Mapping[int, str], found: MutableMapping[int, str]
) -> Iterator[tuple[int, Tokens]]:
    """Each window, as a row from 0 on."""
    if end > begin and not without:
        try:
            yield from enumerate(corpus.batch(begin, end))
            return
        except DamagedSamples:
            pass  # one by one, then
    for window in range(begin, end):
        if window not in without:
            try:
                yield window - begin, corpus.batch(window, window + 1)[0]
            except DamagedSamples as error:
                found[window] = error.rows[0]
