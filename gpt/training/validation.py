"""The loss on validation corpora while a run trains. It changes no weight."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence

import numpy as np

from gpt.data.dataset import ValidationData
from gpt.data.sampling import DamagedSamples, Samples
from gpt.losses.batch import Batch
from gpt.training.engine import Engine, Totals
from gpt.training.objective import Objective


def evaluate(
    engine: Engine,
    objective: Objective,
    corpora: Mapping[str, ValidationData],
    *,
    tokens: int,
    micro_batch_size: int,
    left_out: MutableMapping[str, dict[int, str]],
    before_each: Callable[[], None] = lambda: None,
) -> dict[str, Totals]:
    """The loss on each corpus, from its start, on at most `tokens` tokens of each. Every rank must call it.

    `left_out`: the damaged samples of each corpus with the reason. Samples that any rank finds damaged are added to it,
    on all ranks, and the corpus is evaluated again without them. `before_each` is called before each batch.
    """
    results = {}
    for name, corpus in corpora.items():
        n_samples, without = min(corpus.n_samples, max(1, tokens // corpus.seq_len)), left_out.setdefault(name, {})
        while True:
            found: dict[int, str] = {}
            batches = validation_batches(
                corpus, engine, objective, n_samples, micro_batch_size, without=without, found=found
            )
            results[name] = engine.evaluate(_call_before_each(batches, before_each))
            new = {sample: what for theirs in engine.exchange([*found.items()]) for sample, what in theirs}
            if not new:
                break
            without.update(sorted(new.items()))
    return results


def _call_before_each(batches: Iterator[Batch], before_each: Callable[[], None]) -> Iterator[Batch]:
    for batch in batches:
        before_each()
        yield batch


def validation_values(results: Mapping[str, Totals]) -> dict[str, float | int]:
    """The values logged for an evaluation."""
    values: dict[str, float | int] = {}
    for name, totals in results.items():
        values[f"validation/{name}/loss"] = totals.mean
        values[f"validation/{name}/perplexity"] = float(np.exp(min(totals.mean, 700.0)))
        values |= {f"validation/{name}/{metric}": value for metric, value in totals.metrics.items()}
    return values


def validation_batches(
    corpus: ValidationData,
    engine: Engine,
    objective: Objective,
    n_samples: int,
    per_rank: int,
    *,
    without: Mapping[int, str],
    found: MutableMapping[int, str],
) -> Iterator[Batch]:
    """Equally many batches of one shape on every data-parallel rank.

    Padding rows in the last batch and samples listed in `without` contribute no loss. Damaged samples are added to
    `found`.
    """
    at_once = per_rank * engine.data_size
    for start in range(0, n_samples, at_once):
        begin = min(n_samples, start + engine.data_rank * per_rank)
        numbers: list[int | None] = [
            n if n < n_samples and n not in without else None for n in range(begin, begin + per_rank)
        ]
        samples = _read(corpus, numbers, found)
        blank = [row for row, number in enumerate(numbers) if number is None or number in found]
        yield objective.batch(samples).without_rows(blank)


def _read(corpus: ValidationData, numbers: Sequence[int | None], found: MutableMapping[int, str]) -> Samples:
    """The samples, with damaged ones left blank and added to `found`."""
    try:
        return corpus.read(numbers)
    except DamagedSamples as error:
        for row, what in error.rows.items():
            number = numbers[row]
            assert number is not None
            found[number] = what
    return corpus.read([None if number in found else number for number in numbers])
