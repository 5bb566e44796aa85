"""Save a run, waiting or in the background, and count failed saves. The loop decides when to save."""

import time
from pathlib import Path
from typing import Any

from gpt.errors import ConfigError, MachineFault
from gpt.telemetry.event_log import RecordEvent
from gpt.telemetry.time_ledger import TimeLedger
from gpt.training.config import Retention
from gpt.training.engine import CheckpointStore, Engine
from gpt.training.run import LoopState, Run

RETRY_PAUSE_S = 1.0  # before a save that must succeed is tried again; then four times as long
LOCAL_KEPT = 2  # checkpoints in the local tier: the newest, and the previous one, in case the newest is incomplete


class RunSaver:
    """Saves one run. Every rank makes one, and all call its methods in the same order."""

    def __init__(self, run: Run, engine: Engine, *, ledger: TimeLedger, event: RecordEvent) -> None:
        self.run, self.engine, self.ledger, self.event = run, engine, ledger, event
        self.newest: Path | None = None
        self.failures = 0  # in a row
        self.under_way: int | None = None  # step of a background save to shared storage

    def save(self, state: LoopState, *, must_succeed: bool) -> None:
        """Save and wait for it. One that must succeed is tried again after a fault of the machine.

        ConfigError if it fails and must succeed, or if too many in a row have failed.
        """
        run, pause_s = self.run, RETRY_PAUSE_S
        with self.ledger.span("saving"):
            self.collect(wait=True)
            while True:
                try:
                    self.newest = self.engine.checkpoints.shared.save(
                        run.checkpoints, step=state.step, state=self.contents(state), keep=run.retention_of(state)
                    )
                    break
                except ConfigError as error:
                    may_pass = isinstance(error, MachineFault)
                    self.count_failure(error, step=state.step, fatal=must_succeed and not may_pass)
                    if not must_succeed:
                        return
                time.sleep(pause_s)
                pause_s *= 4
        self.ledger.write()  # a restart no longer loses the work up to here
        self.failures = 0
        self.event("checkpoint_saved", f"saved {self.newest}", checkpoint_step=state.step)

    def start(self, state: LoopState) -> None:
        """Start a background save. Also collect the result of the previous one, which has finished by now."""
        self.under_way = state.step
        self._start(self.engine.checkpoints.shared, self.run.checkpoints, state, self.run.retention_of(state))

    def start_local(self, directory: Path, state: LoopState) -> None:
        """Start a background save to the local tier, to which each rank saves its own shards.

        Skipped while a save to shared storage is under way: training would wait for that storage.
        """
        if self.under_way is not None:
            return
        self._start(self.engine.checkpoints.local, directory, state, Retention(LOCAL_KEPT))

    def _start(self, store: CheckpointStore, directory: Path, state: LoopState, keep: Retention) -> None:
        with self.ledger.span("saving"):
            store.start_save(directory, step=state.step, state=self.contents(state), keep=keep)
            self.collect(wait=not self.run.checkpoint.in_background)

    def collect(self, *, wait: bool) -> None:
        """Collect and log the background saves that have finished: the same ones on all ranks. `wait`: for all."""
        for result in self.engine.checkpoints.local.finished(wait=wait):
            if result.error is not None:  # not counted: the shared checkpoints are unaffected
                self.event("fast_checkpoint_failed", result.error, checkpoint_step=result.step)
        for result in self.engine.checkpoints.shared.finished(wait=wait):
            if result.step == self.under_way:
                self.under_way = None
            if result.error is not None:
                # The start has shown that the directory can be written: something has failed since.
                self.count_failure(MachineFault(result.error), step=result.step, fatal=False)
            else:
                self.newest, self.failures = result.path, 0
                self.event(
                    "checkpoint_saved",
                    f"saved {result.path}: training waited {result.stall_s:.2f} s, written in {result.write_s:.1f} s",
                    checkpoint_step=result.step,  # the event itself has the current step
                    stall_s=result.stall_s,
                    write_s=result.write_s,
                    bytes=result.bytes,
                )

    def contents(self, state: LoopState) -> dict[str, Any]:
        """Everything in a checkpoint besides tensors."""
        return {
            **self.run.saved_state,
            "step": state.step,
            "tokens_seen": self.run.batch.tokens_seen(state.step),
            "samples_seen": self.run.samples_seen(state.step),
            "loop": state.to_json(),
        }

    def count_failure(self, error: ConfigError, *, step: int, fatal: bool) -> None:
        """Log a failed save of `step`. Raise it if it is fatal or too many in a row have failed.

        Otherwise training continues: earlier checkpoints are untouched.
        """
        self.failures += 1
        max_failures = self.run.checkpoint.max_failures
        text = f"{error} (failure {self.failures} in a row of at most {max_failures})"
        self.event("checkpoint_failed", text, checkpoint_step=step)
        if fatal or self.failures >= max_failures:
            raise error
