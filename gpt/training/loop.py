"""The training loop, for any engine, layout and objective."""

import time
from contextlib import nullcontext
from typing import Any

from gpt.data.dataset import TrainingData, ValidationData
from gpt.data.sampling import DamagedSamples
from gpt.health.watchers import NEVER_STOP, UNWATCHED, Heartbeat, StepWatch, StopRequest
from gpt.telemetry.event_log import EventKind
from gpt.telemetry.time_ledger import TimeLedger
from gpt.training.batches import BatchReader, CorruptDataHandler, Damage, damage_of
from gpt.training.engine import Engine, StepResult
from gpt.training.few_shot_probe import FewShotProbe
from gpt.training.objective import Objective
from gpt.training.phases import Phase, Reports, activity
from gpt.training.recovery import Recovery
from gpt.training.run import End, LoopState, Metrics, Outcome, Run, step_values
from gpt.training.samples import Sampler
from gpt.training.saver import RunSaver
from gpt.training.schedule import learning_rate


class TrainingLoop:
    """One training run in this process. `metrics` is None except on the main rank; all else is equal on every rank.

    Each step takes the next global batch in the data's order. Each data-parallel rank reads its contiguous share, so
    the order is the same for every data-parallel size. A step waits for the device once, for the loss.
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
        metrics: Metrics | None,
        ledger: TimeLedger,
        sampler: Sampler | None = None,
        probe: FewShotProbe | None = None,
        watch: StepWatch | None = None,
        heartbeat: Heartbeat = UNWATCHED,
        stop: StopRequest = NEVER_STOP,
    ) -> None:
        self.stop = stop
        self.run, self.engine, self.data, self.state = run, engine, data, state
        self.metrics, self.ledger, self.watch, self.heartbeat = metrics, ledger, watch, heartbeat
        self.reader = BatchReader(run, engine, data, objective)
        self.saver = RunSaver(run, engine, ledger=ledger, event=self.event)
        self.recovery = Recovery(
            run, engine, self.saver, event=self.event, metrics=metrics, ledger=ledger, heartbeat=heartbeat
        )
        self.corrupt_data = CorruptDataHandler(
            run, engine, data, first_step=state.step, event=self.event, save=lambda: self.save(must_succeed=True)
        )
        self.reports = Reports(
            run,
            engine,
            objective,
            data,
            validation,
            state=state,
            corrupt_data=self.corrupt_data,
            metrics=metrics,
            ledger=ledger,
            heartbeat=heartbeat,
        )
        self.phases = [
            *self.reports.phases(sampler, probe),
            Phase(self.save, every_tokens=run.checkpoint.every_tokens, asked=lambda: self.save_is_due, at="no end"),
            Phase(self.save_local, every_tokens=run.checkpoint.fast_every_tokens, at="no end"),
        ]
        self.started_at = self.saved_at = time.monotonic()
        self.save_is_due = False  # by the main rank's clock
        self.trained_tokens, self.trained_s = 0, 0.0

    def train(self) -> Outcome:
        """Train to the end, or until `stop` of any rank asks to save and stop. Every rank must call it."""
        run = self.run
        self.ledger.resume(step=self.state.step, tokens=run.batch.tokens_seen(self.state.step))
        ended: End | None = "total_tokens" if self.state.step >= run.steps else None
        while ended is None:
            ended = self.step_and_phases()
        self.heartbeat.beat("end", self.state.step)
        return Outcome(
            state=self.state,
            tokens_seen=run.batch.tokens_seen(self.state.step),
            ended=ended,
            validation=self.reports.results,
            tokens_per_s=self.trained_tokens / self.trained_s if self.trained_s else 0.0,
            checkpoint=self.saver.newest,
        )

    def step_and_phases(self) -> End | None:
        """One step, the checks after it, and the phases that are due. Returns why the run ends, if it ends here."""
        with nullcontext() if self.watch is None else self.watch.step(self.state.step + 1):
            result, ended = self.take_step()
        self.check_rank_health(result)
        spike = self.recovery.check_loss(self.state, result)
        if spike is not None and self.recovery.rewind(self.state, spike):
            return None
        planned_end = ended == "total_tokens"
        for phase in self.phases:
            if phase.is_due(self.run, self.state.step, ended, planned_end=planned_end):
                ended = phase.work() or ended
        if ended is not None:
            self.save(must_succeed=True)
        self.saver.collect(wait=False)
        return ended

    def take_step(self) -> tuple[StepResult, End | None]:
        """Read, forward, backward, update, log. Returns why the run ends, if it ends here."""
        run, state, started_at = self.run, self.state, time.perf_counter()
        tokens_seen = run.batch.tokens_seen(state.step + 1)
        lr = learning_rate(run.schedule, run.peak_learning_rate, tokens_seen)
        while (result := self.try_step(lr)).discarded:
            pass  # corrupt data: take the step again without them
        elapsed_s = time.perf_counter() - started_at
        self.trained_tokens += run.batch.step_tokens(state.step)
        self.trained_s += elapsed_s
        state.step += 1
        self.stop.step_done()
        if self.metrics is not None and (state.step % run.log_every_steps == 0 or state.step == run.steps):
            self.metrics.log(state.step, step_values(run, result, lr, step=state.step, elapsed_s=elapsed_s))
        self.ledger.step_done(step=state.step, tokens=tokens_seen)
        *asked, self.save_is_due = result.flags
        if state.step == run.steps:
            return result, "total_tokens"
        ends: tuple[End, ...] = ("interrupt", "signal", "stop_after_s")
        return result, next((end for end, raised in zip(ends, asked, strict=True) if raised), None)

    def try_step(self, lr: float) -> StepResult:
        """One attempt at a step. All ranks discard it if any of them could not read its part."""
        state, damage = self.state, list[Damage]()
        step, reading = state.step + 1, nullcontext() if self.watch is None else self.watch.reading()
        with activity("data", step, self.heartbeat, self.ledger, counted_as="data"), reading:
            try:
                batch = self.reader.read(state.step, state.skipped)
            except DamagedSamples as error:
                batch = self.reader.blank(state.step, state.skipped)
                damage = damage_of(self.data, self.reader.positions(state.step, state.skipped), error)
        with activity("training", step, self.heartbeat, self.ledger, counted_as="training"):
            self.reader.announce(step, state.skipped)
            self.engine.forward_backward(batch)
            with nullcontext() if self.watch is None else self.watch.reading():
                self.reader.read_ahead(step, state.skipped)
            result = self.engine.optimizer_step(lr, flags=self.requests(), discard=bool(damage))
        if result.discarded:
            self.corrupt_data.leave_out(state, damage)
        return result

    def check_rank_health(self, result: StepResult) -> None:
        """Compare replicas every so many steps, and at once after a failed step; compare the ranks' step times."""
        every = self.run.replica_check_every_steps
        if every and (result.skipped or self.state.step % every == 0):
            self.recovery.check_replicas(self.state)
        if self.watch is not None:
            values, findings = self.watch.compare()
            if self.metrics is not None and values:
                self.metrics.log(self.state.step, values)
            for kind, text, fields in findings:
                self.event(kind, text, **fields)

    def save(self, *, must_succeed: bool = False) -> None:
        """Save the run. In the background if the recipe allows it, unless the save must succeed before the run ends."""
        self.prepare_save()
        self.saved_at = time.monotonic()
        if self.run.checkpoint.in_background and not must_succeed:
            self.saver.start(self.state)
        else:
            self.saver.save(self.state, must_succeed=must_succeed)

    def save_local(self) -> None:
        """Save to the local tier, unless the shared one is due. A restart may use it, so it is checked as well."""
        shared = self.run.due(self.run.checkpoint.every_tokens, self.state.step)
        if self.run.local_checkpoints is not None and not shared:
            self.prepare_save()
            self.saver.start_local(self.run.local_checkpoints, self.state)

    def prepare_save(self) -> None:
        self.heartbeat.beat("saving", self.state.step)
        if self.run.replica_check_every_steps:
            self.recovery.check_replicas(self.state)

    def event(self, kind: EventKind, text: str, **fields: Any) -> None:
        """Report and record an event, on the main rank."""
        if self.metrics is not None:
            self.metrics.event(kind, step=self.state.step, text=text, **fields)

    def requests(self) -> tuple[bool, ...]:
        """This rank's requests at the end of a step: an interrupt, a signal, the end of `stop_after_s`, a save."""
        config = self.run.checkpoint
        save_after_s = config.every_s if config.every_tokens is None else None
        return (
            self.stop.interrupted,
            self.stop(),
            self.has_passed(self.run.config.stop_after_s, since=self.started_at),
            self.has_passed(save_after_s or None, since=self.saved_at),
        )

    def has_passed(self, seconds: float | None, *, since: float) -> bool:
        """Return whether so many seconds have passed, by the main rank's clock: those of others may differ."""
        return seconds is not None and self.engine.is_main and time.monotonic() - since >= seconds
