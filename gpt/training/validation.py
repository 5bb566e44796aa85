"""The loss on validation corpora during training. Does not change the weights."""

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
    """Return the loss on each corpus, over at most `tokens` tokens from its start. Every rank must call it.

    `left_out`: the damaged windows of each corpus, with the reason. If any rank finds more, they are added on all ranks
    and the corpus is evaluated again without them. `before_each` is called before each batch.
    """
    results = {}
    for name, corpus in corpora.items():
        windows = min(corpus.n_windows, max(1, tokens // corpus.seq_len))
        without = left_out.setdefault(name, {})
        while True:
            found: dict[int, str] = {}
            batches = validation_batches(corpus, engine, windows, micro_batch_size, without=without, found=found)
            results[name] = engine.evaluate(_call_before_each(batches, before_each))
            new = {window: reason for of_rank in engine.exchange([*found.items()]) for window, reason in of_rank}
            if not new:
                break
            without.update(sorted(new.items()))
    return results


def _call_before_each(batches: Iterator[Batch], before_each: Callable[[], None]) -> Iterator[Batch]:
    for batch in batches:
        before_each()
        yield batch


def validation_values(results: Mapping[str, Totals]) -> dict[str, float | int]:
    """Return the values to log of an evaluation."""
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
    """Yield as many batches on every data rank, all of one shape.

    Padding windows in the last batch and windows listed in `without` contribute no loss (targets = IGNORE). Damaged
    windows are added to `found`, with the reason.
    """
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
    """Yield the rows of a batch and their token ids, without damaged windows and those in `without`."""
    if end > begin and not without:
        try:
            yield from enumerate(corpus.batch(begin, end))
            return
        except DamagedSamples:
            pass  # read one by one, to find which are damaged
    for window in range(begin, end):
        if window not in without:
            try:
                yield window - begin, corpus.batch(window, window + 1)[0]
            except DamagedSamples as error:
                found[window] = error.rows[0]
