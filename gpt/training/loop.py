"""The training loop, for any engine and any layout; never asks which layout it has, and never reads the environment."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from gpt.data.dataset import TrainingData, ValidationData
from gpt.errors import ConfigError
from gpt.health.spikes import Spike
from gpt.health.watchers import UNWATCHED, Heartbeat, StepWatch, stop_signals
from gpt.telemetry.event_log import EventKind
from gpt.telemetry.goodput import current_account
from gpt.telemetry.metrics import peak_memory_bytes
from gpt.telemetry.time_ledger import TimeLedger
from gpt.training.batches import epochs_read, step_positions
from gpt.training.config import ReplicaMismatch
from gpt.training.damaged_data import DamageKeeper
from gpt.training.engine import Engine, StepResult, Totals
from gpt.training.few_shot_probe import FewShotProbe, few_shot_records, few_shot_values
from gpt.training.run import End, LoopState, Metrics, Outcome, Run
from gpt.training.samples import Sampler, sample_records
from gpt.training.saver import RunSaver
from gpt.training.schedule import learning_rate
from gpt.training.validation import evaluate, validation_values


def train(
    run: Run,
    engine: Engine,
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
) -> Outcome:
    """Train from `state` to the end, or until SIGTERM or SIGUSR1 asks to save and stop. Every rank calls it.

    One step takes the next global batch in the data's order; each data rank reads its contiguous share, so that the
    order is the same for every data-parallel size. One synchronisation with the device a step, for the loss.
    """
    loop = TrainingLoop(
        run,
        engine,
        data,
        validation,
        state=state,
        metrics=metrics,
        ledger=ledger,
        sampler=sampler,
        probe=probe,
        watch=watch,
        heartbeat=heartbeat,
    )
    ledger.resume(step=state.step, tokens=run.batch.tokens_seen(state.step))
    with stop_signals() as stop_requested:
        ended = loop.run_to_end(stop_requested)
    return loop.outcome(ended)


class TrainingLoop:
    """A run under way. `metrics` is None on all ranks but the main one; all else is alike on every rank."""

    def __init__(
        self,
        run: Run,
        engine: Engine,
        data: TrainingData,
        validation: dict[str, ValidationData],
        *,
        state: LoopState,
        metrics: Metrics | None,
        ledger: TimeLedger,
        sampler: Sampler | None,
        probe: FewShotProbe | None,
        watch: StepWatch | None,
        heartbeat: Heartbeat,
    ) -> None:
        self.run, self.engine, self.data, self.validation = run, engine, data, validation
        self.state, self.metrics, self.ledger, self.sampler = state, metrics, ledger, sampler
        self.probe, self.watch, self.heartbeat = probe, watch, heartbeat
        self.compared_at = -1  # the step after which copies were last found equal
        self.results: dict[str, Totals] = {}
        self.saver = RunSaver(run, engine, ledger=ledger, event=self.event)
        self.damage = DamageKeeper(run, engine, data, event=self.event, save=lambda: self.save(last=True))
        self.began_at = time.monotonic()
        self.trained_tokens, self.trained_s = 0, 0.0

    def run_to_end(self, stop_requested: Callable[[], bool]) -> End:
        """Step after step, with what is due after each."""
        run = self.run
        ended: End | None = "total_tokens" if self.state.step >= run.steps else None
        while ended is None:
            step_watch = nullcontext() if self.watch is None else self.watch.step(self.state.step + 1)
            with step_watch:
                result, ended = self.take_step(stop_requested())
            self.look_after_ranks(result)
            spike = self.judge(result)
            if spike is not None and self.rewind(spike):
                ended = None
                continue
            step, last = self.state.step, ended == "total_tokens"
            if self.metrics is not None and (ended is not None or step % run.epochs_every_steps == 0):
                self.log_progress(self.metrics)
            if self.validation and (last or (ended is None and run.due(run.config.evaluate_every_tokens, step))):
                ended = self.evaluate() or ended
            if self.sampler is not None and (last or (ended is None and run.due(run.config.sample_every_tokens, step))):
                self.sample(self.sampler)
            if self.probe is not None and (last or (ended is None and run.due(run.config.few_shot_every_tokens, step))):
                self.run_few_shot_probe(self.probe)
            if ended is not None or run.due(run.checkpoint.every_tokens, step):
                self.save(last=ended is not None)
            elif run.fast_checkpoints is not None and run.due(run.checkpoint.fast_every_tokens, step):
                self.save_fast(run.fast_checkpoints)
            self.saver.collect(wait=False)
        self.heartbeat.beat("end", self.state.step)
        return ended

    def take_step(self, signalled: bool) -> tuple[StepResult, End | None]:
        """Read, forward, backward, update, report; and whether the run ends here."""
        run, state = self.run, self.state
        started_at = time.perf_counter()
        tokens_seen = run.batch.tokens_seen(state.step + 1)
        rate = learning_rate(run.schedule, run.peak_learning_rate, tokens_seen)
        while (result := self.try_step(rate, signalled)).discarded:
            pass  # damaged data: the same step again, without them
        elapsed_s = time.perf_counter() - started_at
        self.trained_tokens += run.batch.step_tokens(state.step)
        self.trained_s += elapsed_s
        state.step += 1
        if self.metrics is not None and (state.step % run.log_every_steps == 0 or state.step == run.steps):
            self.metrics.log(state.step, step_values(run, result, rate, step=state.step, elapsed_s=elapsed_s))
        self.ledger.step_done(step=state.step, tokens=tokens_seen)
        signal_came, time_is_over = result.flags
        if state.step == run.steps:
            return result, "total_tokens"
        return result, "signal" if signal_came else "stop_after_s" if time_is_over else None

    def try_step(self, rate: float, signalled: bool) -> StepResult:
        """One attempt at a step: discarded, on all ranks, where any of them could not read what it was to read."""
        run, engine, state = self.run, self.engine, self.state
        self.heartbeat.beat("data", state.step + 1)
        reading = nullcontext() if self.watch is None else self.watch.reading()
        with self.ledger.span("data"), reading:
            batch, damage = self.damage.read(state)
        self.heartbeat.beat("training", state.step + 1)
        with self.ledger.span("training"):
            self.data.announce(step_positions(engine, run, state.step + 1, state.skipped))
            engine.forward_backward(batch)
            flags = (signalled, self._time_is_over())
            result = engine.optimizer_step(rate, flags=flags, discard=bool(damage))
        if result.discarded:
            self.damage.agree(state, damage)
        return result

    def look_after_ranks(self, result: StepResult) -> None:
        """What is due of comparing ranks: their copies of weights, at once where a step has gone wrong; their times."""
        every = self.run.replica_check_every_steps
        if every and (result.skipped or self.state.step % every == 0):
            self.check_replicas()
        if self.watch is not None:
            values, findings = self.watch.compare()
            if self.metrics is not None and values:
                self.metrics.log(self.state.step, values)
            for kind, text, fields in findings:
                self.event(kind, text, **fields)

    def check_replicas(self) -> None:
        """End the run, on all ranks alike, where copies of one weight or moment on several ranks have come apart."""
        if self.compared_at == self.state.step:
            return
        found = self.engine.check_replicas()
        if found is not None:
            self.event("replica_mismatch", found)
            raise ReplicaMismatch(
                f"step {self.state.step}: {found}. A device or its memory may be at fault. Nothing was saved since; a "
                f"restart goes on from the newest checkpoint, which was compared before it was saved"
            )
        self.compared_at = self.state.step

    def judge(self, result: StepResult) -> Spike | None:
        """Count a step that changed nothing, and end the run after too many in a row; look for a spike elsewhere."""
        state, loss, norm = self.state, result.loss.mean, result.gradient_norm
        if not result.skipped:
            state.skipped_in_a_row = 0
            spike = state.spikes.observe(state.step, loss)
            if spike is not None:
                self.event("spike", spike.text, first_step=spike.first_step, loss=spike.loss, limit=spike.limit)
            return spike
        state.skipped_steps += 1
        state.skipped_in_a_row += 1
        most = self.run.faults.max_skipped_steps
        found = f"step {state.step}: the loss is {loss} and the gradient norm {norm}"
        if state.skipped_in_a_row > most:
            self.event("stopped", f"{found}; {state.skipped_in_a_row} such steps in a row end the run")
            rate = learning_rate(self.run.schedule, self.run.peak_learning_rate, self.run.batch.tokens_seen(state.step))
            raise ConfigError(
                f"{found}, as in {state.skipped_in_a_row} steps in a row (faults.max_skipped_steps = {most}); the "
                f"weights and earlier checkpoints are good. Lower optimizer.learning_rate (at this step {rate:.3g}), "
                f"lengthen schedule.warmup_tokens, or leave this data out with data.skip"
            )
        self.event(
            "step_skipped", f"{found}: nothing was updated, on any rank ({state.skipped_steps} such steps so far)"
        )
        return None

    def rewind(self, spike: Spike) -> bool:
        """Go back to a checkpoint well before the spike, and leave out the data that was read around it. False where
        the recipe wants none, has had its fill, or no checkpoint is old enough."""
        run, config, state = self.run, self.run.spike, self.state
        if config.action != "rewind":
            return False
        if state.rewinds >= config.max_rewinds:
            self.event("rewind_refused", f"no rewind: there have been spike.max_rewinds = {config.max_rewinds} already")
            return False
        target = config.rewind_target(spike)
        self.heartbeat.beat("rewinding", state.step)
        with self.ledger.span("rewinding"):
            self.saver.collect(wait=True)
            saved = self.engine.checkpoints.shared.load_newest(run.checkpoints, at_most=target)
        if saved is None:
            self.event("rewind_refused", f"no rewind: no checkpoint of step {max(target, 0)} or earlier is left")
            return False
        step, table = saved["step"], saved["loop"]
        assert isinstance(step, int)
        assert isinstance(table, dict)
        first, stop = run.samples_seen(target), run.samples_seen(target + config.skip_steps)
        skipped = state.skipped.without_samples(first, stop, why=spike.why)
        self.state = LoopState.from_json(table, step=step, spike=config)
        self.state.skipped, self.state.rewinds = skipped, state.rewinds + 1
        self.state.skipped_steps = state.skipped_steps
        if self.metrics is not None:
            self.metrics.rewind(step)
        left_out = skipped.ranges[-1]
        self.event(
            "rewind",
            f"went back to the checkpoint of step {step}; positions {left_out.first:,} to {left_out.stop - 1:,} of the "
            f"data's order are left out (rewind {self.state.rewinds} of at most {config.max_rewinds})",
            skipped=[left_out.first, left_out.stop],
        )
        self.ledger.resume(step=step, tokens=run.batch.tokens_seen(step), rewound=True)
        with self.ledger.span("rewinding"):  # so that a restart finds the decision, and not the spike
            if run.fast_checkpoints is not None:
                self.engine.checkpoints.local.discard_after(run.fast_checkpoints, step=step)
            self.save(last=True)
            self.engine.checkpoints.shared.discard_after(run.checkpoints, step=step)
        return True

    def log_progress(self, metrics: Metrics) -> None:
        """How many times each corpus has been read through, and where the run's time went: ten times in a run, and
        where a process ends. Reads the whole ledger of time, while the other ranks wait."""
        epochs = epochs_read(self.run, self.data, self.state)
        values = {f"epochs/{name}": read for name, read in epochs.items()}
        account = current_account(self.ledger)
        metrics.log(self.state.step, values if account is None else values | account.values())

    def evaluate(self) -> End | None:
        """The loss on every validation corpus; whether it is what the run was to reach."""
        config = self.run.config
        with self.ledger.span("evaluation"):
            self.results = evaluate(
                self.engine,
                self.validation,
                tokens=config.validation_tokens,
                micro_batch_size=self.run.micro_batch_size,
                left_out=self.damage.windows,
                before_each=lambda: self.heartbeat.beat("evaluation", self.state.step),
            )
        self.damage.tell_of_windows(self.state)
        if self.metrics is not None:
            self.metrics.log(self.state.step, validation_values(self.results))
        target = config.target_loss
        reached = target is not None and all(totals.mean <= target for totals in self.results.values())
        return "target_loss" if reached else None

    def sample(self, sampler: Sampler) -> None:
        """Have the model write, on all ranks, and the main rank keep it."""
        self.heartbeat.beat("sampling", self.state.step)
        with self.ledger.span("sampling"):
            texts = sampler.write(self.engine, step=self.state.step)
        if self.metrics is not None:
            records = sample_records(step=self.state.step, prompts=sampler.prompts, texts=texts)
            self.metrics.append("samples.jsonl", records)
            for text in texts:
                self.metrics.message(f"sample at step {self.state.step}: {text!r}")

    def run_few_shot_probe(self, probe: FewShotProbe) -> None:
        """Put few-shot questions to the model, on all ranks, and have the main rank keep the scores."""
        step = self.state.step
        self.heartbeat.beat("few_shot", step)
        with self.ledger.span("evaluation"):
            scores = probe.run(self.engine, before_each=lambda: self.heartbeat.beat("few_shot", step))
        if self.metrics is not None:
            records = few_shot_records(scores, step=step, tokens=self.run.batch.tokens_seen(step))
            self.metrics.append("few_shot.jsonl", records)
            self.metrics.log(step, few_shot_values(scores))

    def save(self, *, last: bool) -> None:
        """Save the run as it is now. The `last` save is waited for, and must succeed."""
        self.heartbeat.beat("saving", self.state.step)
        if self.run.replica_check_every_steps:
            self.check_replicas()
        if self.run.checkpoint.in_background and not last:
            self.saver.start(self.state)
        else:
            self.saver.save(self.state, must_succeed=last)

    def save_fast(self, directory: Path) -> None:
        """The same in the second tier: a restart may take its newest, which must be as good."""
        self.heartbeat.beat("saving", self.state.step)
        if self.run.replica_check_every_steps:
            self.check_replicas()
        self.saver.start_fast(directory, self.state)

    def event(self, kind: EventKind, text: str, **fields: Any) -> None:
        """Have it told and kept, by the main rank."""
        if self.metrics is not None:
            self.metrics.event(kind, step=self.state.step, text=text, **fields)

    def outcome(self, ended: End) -> Outcome:
        """What is left to tell when the loop has ended."""
        return Outcome(
            state=self.state,
            tokens_seen=self.run.batch.tokens_seen(self.state.step),
            ended=ended,
            validation=self.results,
            tokens_per_s=self.trained_tokens / self.trained_s if self.trained_s else 0.0,
            checkpoint=self.saver.newest,
        )

    def _time_is_over(self) -> bool:
        """By the main rank's clock: those of others may differ."""
        limit_s = self.run.config.stop_after_s
        return limit_s is not None and self.engine.is_main and time.monotonic() - self.began_at >= limit_s


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
        **result.metrics,
    }
    if (memory := peak_memory_bytes()) is not None:
        values["peak_memory_bytes"] = memory  # of the main rank
    if run.peak_flops_per_s:
        values["mfu"] = run.model.train_flops_per_token(run.seq_len) * tokens_per_s / run.peak_flops_per_s
    return values
