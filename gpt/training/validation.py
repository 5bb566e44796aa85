"""The loss on validation corpora during training, and the best checkpoint by it. It does not change the weights."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gpt.data.dataset import ValidationData
from gpt.data.sampling import DamagedSamples, Samples
from gpt.errors import ConfigError
from gpt.losses.base import Loss, ShownMetrics, TokenLikelihood
from gpt.losses.batch import Batch
from gpt.token_files.checksums import DamagedTokens
from gpt.training.config import CheckpointConfig
from gpt.training.engine import Engine, Totals
from gpt.training.objective import Objective


@dataclass(frozen=True)
class Best:
    """The step of the best evaluation so far, and its value."""

    step: int
    value: float

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> "Best":
        return cls(int(table["step"]), float(table["value"]))


def best_of(
    known: Best | None, values: Mapping[str, float], *, step: int, name: str, best_is: Literal["lowest", "highest"]
) -> Best | None:
    """The better of the best so far and the evaluation at a step. Of equal ones, the earlier stays.

    A value that is no finite number is never the best.
    """
    value = values.get(name, math.nan)
    if not math.isfinite(value):
        return known
    sign = 1 if best_is == "lowest" else -1
    return Best(step, value) if known is None or sign * value < sign * known.value else known


def check_best_name(checkpoint: CheckpointConfig, names: list[str]) -> None:
    """ConfigError if no evaluation gives the value that names the best checkpoint. `names`: those it gives."""
    if checkpoint.keep_best is not None and checkpoint.keep_best not in names:
        raise ConfigError(
            f"checkpoint.keep_best = '{checkpoint.keep_best}' is invalid: evaluations give no such value. Use one of "
            f"{', '.join(names) or 'data.validation first'}"
        )


def evaluate(
    engine: Engine,
    objective: Objective,
    corpora: Mapping[str, ValidationData],
    *,
    tokens: int,
    micro_batch_size: int,
    left_out: MutableMapping[str, dict[int, DamagedTokens]],
    before_each: Callable[[], None] = lambda: None,
) -> dict[str, Totals]:
    """Return the loss on each corpus, over at most `tokens` tokens from its start. Every rank must call it.

    `left_out`: the damaged samples of each corpus, with the reason. If any rank finds more, they are added on all ranks
    and the corpus is evaluated again without them. `before_each` is called before each batch.
    """
    results = {}
    for name, corpus in corpora.items():
        n_samples, without = min(corpus.n_samples, max(1, tokens // corpus.seq_len)), left_out.setdefault(name, {})
        while True:
            found: dict[int, DamagedTokens] = {}
            batches = validation_batches(
                corpus,
                objective,
                n_samples,
                per_rank=micro_batch_size,
                data_rank=engine.data_rank,
                data_size=engine.data_size,
                without=without,
                found=found,
            )
            results[name] = engine.evaluate(_call_before_each(batches, before_each))
            by_rank = engine.all_gather_objects([*found.items()])
            new = {sample: reason for of_rank in by_rank for sample, reason in of_rank}
            if not new:
                break
            without.update(sorted(new.items()))
    return results


def _call_before_each(batches: Iterator[Batch], before_each: Callable[[], None]) -> Iterator[Batch]:
    for batch in batches:
        before_each()
        yield batch


def validation_values(results: Mapping[str, Totals], loss: Loss) -> dict[str, float | int]:
    """Return the values to log of an evaluation with `loss`, by the names that `validation_names` gives."""
    values: dict[str, float | int] = {}
    for name, totals in results.items():
        values[f"validation/{name}/loss"] = totals.mean
        if isinstance(loss, TokenLikelihood):
            values[f"validation/{name}/perplexity"] = loss.perplexity(totals.mean)
        shown = loss.shown(totals.metrics) if isinstance(loss, ShownMetrics) else totals.metrics
        values |= {f"validation/{name}/{metric}": value for metric, value in shown.items()}
    return values


def validation_names(corpora: Iterable[str], loss: Loss) -> list[str]:
    """Return the names of the values that an evaluation of these corpora logs."""
    no_values = Totals(0.0, 1, dict.fromkeys(loss.evaluation_names, 0.0))
    return [*validation_values(dict.fromkeys(corpora, no_values), loss)]


def validation_batches(
    corpus: ValidationData,
    objective: Objective,
    n_samples: int,
    *,
    per_rank: int,
    data_rank: int,
    data_size: int,
    without: Mapping[int, DamagedTokens],
    found: MutableMapping[int, DamagedTokens],
) -> Iterator[Batch]:
    """Yield this data rank's batches of the first `n_samples` samples: equally many on every rank, all of one shape.

    Padding rows in the last batch and samples listed in `without` contribute no loss. Damaged samples are added to
    `found`.
    """
    at_once = per_rank * data_size
    for start in range(0, n_samples, at_once):
        begin = min(n_samples, start + data_rank * per_rank)
        numbers: list[int | None] = [
            n if n < n_samples and n not in without else None for n in range(begin, begin + per_rank)
        ]
        samples = _read(corpus, numbers, found)
        blank = [row for row, number in enumerate(numbers) if number is None or number in found]
        yield objective.batch(samples).without_rows(blank)


def _read(corpus: ValidationData, numbers: Sequence[int | None], found: MutableMapping[int, DamagedTokens]) -> Samples:
    """Read samples. Damaged ones are left blank and added to `found`."""
    try:
        return corpus.read(numbers)
    except DamagedSamples as error:
        for row, reason in error.rows.items():
            number = numbers[row]
            assert number is not None
            found[number] = reason
    return corpus.read([None if number in found else number for number in numbers])
