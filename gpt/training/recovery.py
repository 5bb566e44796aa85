"""Recovery from bad steps: count skipped steps, rewind after a loss spike, end on a replica mismatch."""

from gpt.errors import ConfigError
from gpt.health.spikes import Spike
from gpt.health.watchers import Heartbeat
from gpt.telemetry.event_log import RecordEvent
from gpt.telemetry.time_ledger import TimeLedger
from gpt.training.config import ReplicaMismatch
from gpt.training.engine import Engine, StepResult
from gpt.training.run import LoopState, Metrics, Run
from gpt.training.saver import RunSaver
from gpt.training.schedule import learning_rate


class Recovery:
    """The recovery of one run. All ranks take the same decisions, since they see the same numbers."""

    def __init__(
        self,
        run: Run,
        engine: Engine,
        saver: RunSaver,
        *,
        event: RecordEvent,
        metrics: Metrics | None,
        ledger: TimeLedger,
        heartbeat: Heartbeat,
    ) -> None:
        self.run, self.engine, self.saver = run, engine, saver
        self.event, self.metrics, self.ledger, self.heartbeat = event, metrics, ledger, heartbeat
        self._checked_at = -1  # the step after which replicas were last found equal

    def check_replicas(self, state: LoopState) -> None:
        """End the run, on all ranks, if copies of one weight or moment differ between ranks."""
        if self._checked_at == state.step:
            return
        found = self.engine.check_replicas()
        if found is not None:
            self.event("replica_mismatch", found)
            raise ReplicaMismatch(
                f"step {state.step}: {found}. A device or its memory may be at fault. Nothing was saved since; a "
                f"restart resumes from the newest checkpoint, which was checked before it was saved"
            )
        self._checked_at = state.step

    def check_loss(self, state: LoopState, result: StepResult) -> Spike | None:
        """Count a step that updated nothing, and end the run after too many in a row; else look for a spike."""
        loss, norm = result.loss.mean, result.gradient_norm
        if not result.skipped:
            state.skipped_in_a_row = 0
            spike = state.spikes.observe(state.step, loss)
            if spike is not None:
                self.event("spike", spike.text, first_step=spike.first_step, loss=spike.loss, limit=spike.limit)
            return spike
        state.skipped_steps += 1
        state.skipped_in_a_row += 1
        limit = self.run.faults.max_skipped_steps
        found = f"step {state.step}: the loss is {loss} and the gradient norm {norm}"
        if result.loss.tokens == 0:
            found = f"step {state.step}: no position of the batch has a target"
        if state.skipped_in_a_row > limit:
            self.event("stopped", f"{found}; {state.skipped_in_a_row} such steps in a row end the run")
            if self.saver.under_way is not None:  # else the end would cost a save that is nearly written
                self.heartbeat.beat("saving", state.step)
                self.saver.collect(wait=True)
            lr = learning_rate(self.run.schedule, self.run.peak_learning_rate, self.run.batch.tokens_seen(state.step))
            raise ConfigError(
                f"{found}, as in {state.skipped_in_a_row} steps in a row (faults.max_skipped_steps = {limit}); the "
                f"weights and earlier checkpoints are good. Lower optimizer.learning_rate (at this step {lr:.3g}), "
                f"lengthen schedule.warmup_tokens, or leave this data out with data.skip"
            )
        self.event(
            "step_skipped", f"{found}: nothing was updated, on any rank ({state.skipped_steps} such steps so far)"
        )
        return None

    def rewind(self, state: LoopState, spike: Spike) -> bool:
        """Return to a checkpoint well before the spike, and leave out the data read around it.

        Updates `state` in place. False, and nothing done, if the recipe does not enable it, has used up its rewinds,
        or no checkpoint is old enough.
        """
        run, config = self.run, self.run.spike
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
        first, stop = run.samples_seen(target), run.samples_seen(target + config.skip_steps)
        state.rewind_to(saved, spike=config, skipped=state.skipped.without_samples(first, stop, why=spike.why))
        self._finish_rewind(state)
        return True

    def _finish_rewind(self, state: LoopState) -> None:
        """Report and save a rewound state, so that a restart finds this decision and not the spike."""
        run, step = self.run, state.step
        if self.metrics is not None:
            self.metrics.rewind(step)
        gap = state.skipped.ranges[-1]
        self.event(
            "rewind",
            f"went back to the checkpoint of step {step}; positions {gap.first:,} to {gap.stop - 1:,} of the "
            f"data's order are left out (rewind {state.rewinds} of at most {run.spike.max_rewinds})",
            skipped=[gap.first, gap.stop],
        )
        self.ledger.resume(step=step, tokens=run.batch.tokens_seen(step), rewound=True)
        with self.ledger.span("rewinding"):
            if run.local_checkpoints is not None:
                self.engine.checkpoints.local.discard_after(run.local_checkpoints, step=step)
            self.heartbeat.beat("saving", step)
            if run.replica_check_every_steps:
                self.check_replicas(state)
            self.saver.save(state, must_succeed=True)
            self.engine.checkpoints.shared.discard_after(run.checkpoints, step=step)
