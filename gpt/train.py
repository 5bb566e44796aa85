"""The training loop, for any engine and any layout; never asks which layout it has, and never reads the environment."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from gpt.batch_ramp import BatchRamp
from gpt.config import ModelConfig
from gpt.dataset import TrainingData, ValidationData, share_of_step
from gpt.engine import Batch, Engine, StepResult, Totals
from gpt.errors import ConfigError
from gpt.loss import IGNORE
from gpt.schedule import ScheduleConfig, learning_rate


@dataclass(frozen=True)
class TrainConfig:
    """How long to train, how often to look and to save. Spans are in tokens, since tokens are the clock."""

    total_tokens: int
    evaluate_every_tokens: int | None = None
    validation_tokens: int = 1 << 20  # at most so many of each validation corpus, from its start
    checkpoint_every_tokens: int | None = None
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for key in (
            "total_tokens",
            "evaluate_every_tokens",
            "validation_tokens",
            "checkpoint_every_tokens",
            "keep_checkpoints",
        ):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"train.{key} = {value} must be at least 1")

    def steps(self, batch: BatchRamp) -> int:
        """Whole steps that reach total_tokens."""
        return batch.steps_to(self.total_tokens)


class Metrics(Protocol):
    """Where the loop reports; on the main rank only."""

    def log(self, step: int, values: dict[str, float | int]) -> None: ...
    def message(self, text: str) -> None: ...


@dataclass(frozen=True)
class Run:
    """Everything that one training run needs."""

    config: TrainConfig
    model: ModelConfig
    schedule: ScheduleConfig
    peak_learning_rate: float
    seq_len: int
    batch: BatchRamp
    micro_batch_size: int
    peak_flops_per_s: float  # of all devices together, for model FLOP utilisation; 0 when unknown
    log_every_steps: int
    checkpoints: Path
    saved_state: dict[str, object]  # what each checkpoint carries besides the position: configuration, fingerprints

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.config.steps(self.batch)

    def samples_seen(self, step: int) -> int:
        """Samples of all steps before `step`, over all data ranks: the place in the data's order."""
        return self.batch.tokens_seen(step) // self.seq_len

    @property
    def epochs_every_steps(self) -> int:
        """How often the epochs are reported: about ten times in a run."""
        return max(1, self.steps // 10)


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int
    tokens_seen: int
    interrupted: bool
    validation: dict[str, Totals]
    tokens_per_s: float  # over the steps of this process, evaluation and saving left out
    checkpoint: Path | None


def train(
    run: Run,
    engine: Engine,
    data: TrainingData,
    validation: dict[str, ValidationData],
    *,
    metrics: Metrics | None,
    first_step: int = 0,
) -> Outcome:
    """Train from `first_step` to the end, or until SIGTERM or SIGUSR1 asks to save and stop. Every rank calls it.

    One step takes the next global batch in the data's order; each data rank reads its contiguous share, so that the
    order is the same for every data-parallel size. One synchronisation with the device a step, for the loss.
    """
    steps = run.steps
    step, results, saved, training_s = first_step, {}, None, 0.0
    evaluate_at, save_at = run.config.evaluate_every_tokens, run.config.checkpoint_every_tokens
    with stop_signals() as stop_requested:
        interrupted = False
        while step < steps and not interrupted:
            started_at = time.perf_counter()
            batch = read_batch(data, engine, run, step)
            data.announce(step_positions(engine, run, step + 1))
            engine.forward_backward(batch)
            step += 1
            step_tokens, tokens_seen = run.batch.step_tokens(step - 1), run.batch.tokens_seen(step)
            rate = learning_rate(run.schedule, run.peak_learning_rate, tokens_seen)
            result = engine.optimizer_step(rate, flag=stop_requested())
            elapsed_s = time.perf_counter() - started_at
            training_s += elapsed_s
            check_finite(step, result, rate)
            if metrics is not None and (step % run.log_every_steps == 0 or step == steps):
                metrics.log(step, step_values(run, result, rate, step=step, elapsed_s=elapsed_s))
            done = step == steps
            interrupted = result.flagged and not done
            if metrics is not None and (done or interrupted or step % run.epochs_every_steps == 0):
                report_epochs(run, data, metrics=metrics, step=step)
            if validation and not interrupted and (done or _due(evaluate_at, tokens_seen, step_tokens)):
                results = evaluate(run, engine, validation, metrics=metrics, step=step)
            if interrupted or done or _due(save_at, tokens_seen, step_tokens):
                saved = save(run, engine, step)
                if metrics is not None:
                    metrics.message(f"saved {saved}")
    new_tokens = run.batch.tokens_seen(step) - run.batch.tokens_seen(first_step)
    return Outcome(
        step,
        run.batch.tokens_seen(step),
        interrupted,
        results,
        new_tokens / training_s if training_s else 0.0,
        saved,
    )


def check_finite(step: int, result: StepResult, rate: float) -> None:
    """End the run, on all ranks alike, when a step has blown up."""
    loss, norm = result.loss.mean, result.gradient_norm
    if not np.isfinite(loss) or not np.isfinite(norm):
        raise ConfigError(
            f"step {step}: the loss is {loss} and the gradient norm {norm}; earlier checkpoints are good. "
            f"Lower optimizer.learning_rate (at this step {rate:.3g}) or lengthen schedule.warmup_tokens"
        )


def read_batch(data: TrainingData, engine: Engine, run: Run, step: int) -> Batch:
    """This data rank's share of a step's global batch: (sequences, seq_len) inputs and targets."""
    tokens = torch.from_numpy(data.batch(step_positions(engine, run, step)))  # (sequences, seq_len + 1)
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


def step_positions(engine: Engine, run: Run, step: int) -> NDArray[np.int64]:
    """The positions of the data's order that this data rank reads for a step."""
    first, n_samples = run.samples_seen(step), run.batch.step_tokens(step) // run.seq_len
    return share_of_step(first, n_samples=n_samples, rank=engine.data_rank, ranks=engine.data_size)


def report_epochs(run: Run, data: TrainingData, *, metrics: Metrics, step: int) -> None:
    """How many times each corpus has been read through: ten times in a run, and where a process ends."""
    epochs = data.epochs(run.samples_seen(step))
    metrics.log(step, {f"epochs/{name}": read for name, read in epochs.items()})


def evaluate(
    run: Run, engine: Engine, validation: dict[str, ValidationData], *, metrics: Metrics | None, step: int
) -> dict[str, Totals]:
    """The loss on each validation corpus, from its start, at most validation_tokens of each."""
    results = {}
    for name, corpus in validation.items():
        windows = min(corpus.n_windows, max(1, run.config.validation_tokens // run.seq_len))
        results[name] = engine.evaluate(validation_batches(corpus, engine, windows, run.micro_batch_size))
    if metrics is not None:
        values = {}
        for name, totals in results.items():
            values[f"validation/{name}/loss"] = totals.mean
            values[f"validation/{name}/perplexity"] = float(np.exp(min(totals.mean, 700.0)))
        metrics.log(step, values)
    return results


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


def save(run: Run, engine: Engine, step: int) -> Path:
    """Publish a checkpoint of this step."""
    position = {
        "step": step,
        "tokens_seen": run.batch.tokens_seen(step),
        "samples_seen": run.samples_seen(step),
    }
    state = {**run.saved_state, **position}
    return engine.save(run.checkpoints, step=step, state=state, keep_last=run.config.keep_checkpoints)


def step_values(run: Run, result: StepResult, rate: float, *, step: int, elapsed_s: float) -> dict[str, float | int]:
    """What is logged of one step."""
    tokens_per_s = run.batch.step_tokens(step - 1) / elapsed_s
    values: dict[str, float | int] = {
        "loss": result.loss.mean,
        "gradient_norm": result.gradient_norm,
        "learning_rate": rate,
        "tokens_per_s": tokens_per_s,
        "tokens_seen": run.batch.tokens_seen(step),
        "step_s": elapsed_s,
    }
    if run.peak_flops_per_s:
        values["mfu"] = run.model.train_flops_per_token(run.seq_len) * tokens_per_s / run.peak_flops_per_s
    return values


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """While inside, SIGTERM and SIGUSR1 are noted instead of killing; yields a function that says whether one came."""
    noted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield noted.is_set
        return
    before = {number: signal.signal(number, lambda *_: noted.set()) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield noted.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _due(every_tokens: int | None, tokens_seen: int, step_tokens: int) -> bool:
    """Whether this step reached or passed a multiple of `every_tokens`."""
    return every_tokens is not None and tokens_seen // every_tokens > (tokens_seen - step_tokens) // every_tokens
