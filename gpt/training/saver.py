"""Saves a run, at once or beside training, and counts the saves that failed; decides neither when nor what is kept."""

from pathlib import Path
from typing import Any

from gpt.errors import ConfigError
from gpt.telemetry.event_log import RecordEvent
from gpt.telemetry.time_ledger import TimeLedger
from gpt.training.config import Retention
from gpt.training.engine import CheckpointStore, Engine
from gpt.training.run import LoopState, Run

FAST_KEPT = 2  # checkpoints of the second tier: the newest, and the one before, whole while the newest is being made


class RunSaver:
    """The saves of one run, the same ones on all ranks."""

    def __init__(self, run: Run, engine: Engine, *, ledger: TimeLedger, event: RecordEvent) -> None:
        self.run, self.engine, self.ledger, self.event = run, engine, ledger, event
        self.newest: Path | None = None
        self.failures = 0  # in a row
        self.under_way: int | None = None  # step of a save of the first tier beside training

    def save(self, state: LoopState, *, must_succeed: bool) -> None:
        """Save and wait for it. ConfigError where it fails and must not, or has failed too often."""
        run = self.run
        with self.ledger.span("saving"):
            self.collect(wait=True)
            try:
                self.newest = self.engine.checkpoints.shared.save(
                    run.checkpoints, step=state.step, state=self.contents(state), keep=run.retention
                )
            except ConfigError as error:
                self.count_failure(error, step=state.step, fatal=must_succeed)
                return
        self.ledger.write()  # what was done up to here is not lost any more
        self.failures = 0
        self.event("checkpoint_saved", f"saved {self.newest}", checkpoint_step=state.step)

    def start(self, state: LoopState) -> None:
        """Begin a save that goes on beside training, and hear of the one before, which has ended by then."""
        self.under_way = state.step
        self._start(self.engine.checkpoints.shared, self.run.checkpoints, state, self.run.retention)

    def start_fast(self, directory: Path, state: LoopState) -> None:
        """The same in the second tier, where each rank keeps its own part; left out while a save of the first is under
        way, since training would wait for shared storage."""
        if self.under_way is not None:
            return
        self._start(self.engine.checkpoints.local, directory, state, Retention(FAST_KEPT))

    def _start(self, store: CheckpointStore, directory: Path, state: LoopState, keep: Retention) -> None:
        with self.ledger.span("saving"):
            store.start_save(directory, step=state.step, state=self.contents(state), keep=keep)
            self.collect(wait=not self.run.checkpoint.in_background)

    def collect(self, *, wait: bool) -> None:
        """Hear of the saves beside training that have ended: the same ones on all ranks, at the same step."""
        for result in self.engine.checkpoints.local.finished(wait=wait):
            if result.error is not None:  # not counted: the shared checkpoints are unaffected
                self.event("fast_checkpoint_failed", result.error, checkpoint_step=result.step)
        for result in self.engine.checkpoints.shared.finished(wait=wait):
            if result.step == self.under_way:
                self.under_way = None
            if result.error is not None:
                self.count_failure(ConfigError(result.error), step=result.step, fatal=False)
            else:
                self.newest, self.failures = result.path, 0
                self.event(
                    "checkpoint_saved",
                    f"saved {result.path}: training waited {result.stall_s:.2f} s, written in {result.write_s:.1f} s",
                    checkpoint_step=result.step,  # the event's own is the step that the run has come to by now
                    stall_s=result.stall_s,
                    write_s=result.write_s,
                    bytes=result.bytes,
                )

    def contents(self, state: LoopState) -> dict[str, Any]:
        """All that a checkpoint holds besides tensors."""
        return {
            **self.run.saved_state,
            "step": state.step,
            "tokens_seen": self.run.batch.tokens_seen(state.step),
            "samples_seen": self.run.samples_seen(state.step),
            "loop": state.to_json(),
        }

    def count_failure(self, error: ConfigError, *, step: int, fatal: bool) -> None:
        """Go on, as earlier checkpoints are untouched, unless the save of `step` had to succeed or too many failed."""
        self.failures += 1
        most = self.run.checkpoint.max_failures
        text = f"{error} (failure {self.failures} in a row of at most {most})"
        self.event("checkpoint_failed", text, checkpoint_step=step)
        if fatal or self.failures >= most:
            raise error
