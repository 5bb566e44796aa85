"""The work between two steps: progress, evaluation, samples and few-shot questions."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from gpt.data.dataset import TrainingData, ValidationData
from gpt.health.watchers import Heartbeat
from gpt.telemetry.goodput import current_account
from gpt.telemetry.time_ledger import TimeLedger
from gpt.training.batches import CorruptDataHandler, epochs_read
from gpt.training.engine import Engine, Totals
from gpt.training.few_shot_probe import FewShotProbe, few_shot_records, few_shot_values
from gpt.training.objective import Objective
from gpt.training.run import End, LoopState, Metrics, Run
from gpt.training.samples import Sampler, sample_records
from gpt.training.validation import best_of, evaluate, validation_values


@dataclass(frozen=True)
class Phase:
    """Work after some steps: every so many tokens or steps, when `asked`, and at the run's planned end or at any end.

    `asked` must return the same on all ranks.
    """

    work: Callable[[], End | None]  # returns why the run ends, if it ends here
    every_tokens: int | None = None
    every_steps: int | None = None
    asked: Callable[[], bool] = lambda: False
    at: Literal["planned end", "any end", "no end"] = "planned end"

    def is_due(self, run: Run, step: int, ended: End | None, *, planned_end: bool) -> bool:
        """Return whether the phase follows step `step`, counted from 1.

        `planned_end`: the run has reached its last step. `ended`: why it ends here, as known so far; an evaluation may
        have found a reason that the step did not.
        """
        if self.at == "planned end" and planned_end:
            return True
        if ended is not None:
            return self.at == "any end"
        by_steps = self.every_steps is not None and step % self.every_steps == 0
        return by_steps or run.due(self.every_tokens, step) or self.asked()


@contextmanager
def activity(name: str, step: int, heartbeat: Heartbeat, ledger: TimeLedger, *, counted_as: str) -> Iterator[None]:
    """Tell watchers that an activity begins, and count its time in the ledger."""
    heartbeat.beat(name, step)
    with ledger.span(counted_as):
        yield


class Reports:
    """Reports on the model during training. No phase changes a weight. Every rank must run the same phases.

    `results`: the last evaluation of each validation corpus.
    """

    def __init__(
        self,
        run: Run,
        engine: Engine,
        objective: Objective,
        data: TrainingData,
        validation: dict[str, ValidationData],
        *,
        state: LoopState,
        corrupt_data: CorruptDataHandler,
        metrics: Metrics | None,
        ledger: TimeLedger,
        heartbeat: Heartbeat,
    ) -> None:
        self.run, self.engine, self.objective, self.data, self.validation = run, engine, objective, data, validation
        self.state, self.corrupt_data = state, corrupt_data
        self.metrics, self.ledger, self.heartbeat = metrics, ledger, heartbeat
        self.results: dict[str, Totals] = {}

    def phases(self, sampler: Sampler | None, probe: FewShotProbe | None) -> list[Phase]:
        """The phases that the recipe enables, in order."""
        config, phases = self.run.config, []
        if self.metrics is not None:
            phases.append(Phase(self.log_progress, every_steps=self.run.epochs_every_steps, at="any end"))
        if self.validation:
            phases.append(Phase(self.evaluate, every_tokens=config.evaluate_every_tokens))
        if sampler is not None:
            phases.append(Phase(lambda: self.write_samples(sampler), every_tokens=config.sample_every_tokens))
        if probe is not None:
            phases.append(Phase(lambda: self.run_few_shot_probe(probe), every_tokens=config.few_shot_every_tokens))
        return phases

    def log_progress(self) -> None:
        """Log the epochs of each corpus and the run's time account. Reads the whole time ledger: not for every step."""
        assert self.metrics is not None
        values = {f"epochs/{name}": read for name, read in epochs_read(self.run, self.data, self.state).items()}
        account = current_account(self.ledger)
        self.metrics.log(self.state.step, values if account is None else values | account.values())

    def evaluate(self) -> End | None:
        """Evaluate every validation corpus. The run ends if all have reached the target loss."""
        with self.ledger.span("evaluation"):
            self.results = evaluate(
                self.engine,
                self.objective,
                self.validation,
                tokens=self.run.config.validation_tokens,
                micro_batch_size=self.run.micro_batch_size,
                left_out=self.corrupt_data.windows,
                before_each=lambda: self.heartbeat.beat("evaluation", self.state.step),
            )
        self.corrupt_data.report_windows(self.state)
        values = validation_values(self.results, self.objective.loss(compile=False))
        self.note_best(values)
        if self.metrics is not None:
            self.metrics.log(self.state.step, values)
        target = self.run.config.target_loss
        reached = target is not None and all(totals.mean <= target for totals in self.results.values())
        return "target_loss" if reached else None

    def note_best(self, values: Mapping[str, float]) -> None:
        """Remember this step if it is the best by `checkpoint.keep_best`. `values` are equal on all ranks."""
        config, state = self.run.checkpoint, self.state
        if config.keep_best is None:
            return
        best = best_of(state.best, values, step=state.step, name=config.keep_best, best_is=config.best_is)
        if best != state.best and best is not None and self.metrics is not None:
            text = f"{config.keep_best} {best.value:.4f} is the best so far: this checkpoint is kept"
            self.metrics.event("best", step=state.step, text=text, value=best.value)
        state.best = best

    def write_samples(self, sampler: Sampler) -> None:
        """Have the model write texts, on all ranks, and the main rank store them."""
        step = self.state.step
        with activity("sampling", step, self.heartbeat, self.ledger, counted_as="sampling"):
            texts = sampler.write(self.engine, step=step)
        if self.metrics is not None:
            self.metrics.append("samples.jsonl", sample_records(step=step, prompts=sampler.prompts, texts=texts))
            self.metrics.samples(step, sampler.prompts, texts)

    def run_few_shot_probe(self, probe: FewShotProbe) -> None:
        """Put few-shot questions to the model, on all ranks, and have the main rank store the scores."""
        step = self.state.step
        with activity("few_shot", step, self.heartbeat, self.ledger, counted_as="evaluation"):
            scores = probe.run(self.engine, before_each=lambda: self.heartbeat.beat("few_shot", step))
        if self.metrics is not None:
            records = few_shot_records(scores, step=step, tokens=self.run.batch.tokens_seen(step))
            self.metrics.append("few_shot.jsonl", records)
            self.metrics.log(step, few_shot_values(scores))
