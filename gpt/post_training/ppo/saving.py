"""Save a PPO run: value model and moving average first, the policy last, so that a policy's checkpoint has the others.

RUN/checkpoints/        the policy, and the state of the run
RUN/value/checkpoints/  the value model with its optimizer
RUN/ema/checkpoints/    the moving average of the policy's weights; RUN/ema works like a run for other commands
"""

from pathlib import Path

from gpt.adapters.config import BASE
from gpt.errors import ConfigError, file_error
from gpt.post_training.ppo.models import PPOModels, agree
from gpt.post_training.ppo.state import PPOState
from gpt.telemetry.event_log import RecordEvent
from gpt.telemetry.time_ledger import TimeLedger
from gpt.training.config import Retention
from gpt.training.run import Run
from gpt.training.saver import RunSaver


class PPOSaver:
    """Saves one PPO run. Every rank makes one, and all call its methods in the same order."""

    def __init__(self, run: Run, models: PPOModels, *, ledger: TimeLedger, event: RecordEvent) -> None:
        self.run, self.ledger = run, ledger
        self.saver = RunSaver(run, models.policy, ledger=ledger, event=event)
        self.others = {n: e for n, e in (("value", models.value), ("ema", models.ema)) if e is not None}

    @property
    def newest(self) -> Path | None:
        """The newest checkpoint of the policy that this process saved."""
        return self.saver.newest

    def save(self, state: PPOState, *, must_succeed: bool) -> bool:
        """Save and wait for it; return whether it is saved.

        ConfigError if it fails and must succeed, or if too many in a row have failed.
        """
        contents = self.saver.contents(state.to_loop())
        contents.pop(BASE, None)  # only the policy has adapters
        kept = self.run.retention
        # One more than of the policy: while a policy's checkpoint is there, so are those of its step.
        keep = Retention(kept.last + 1, kept.permanent)
        try:
            with self.ledger.span("saving"):
                for name, engine in self.others.items():
                    directory = self.run.directory / name / "checkpoints"
                    agree(engine, _make(directory.parent) if engine.is_main else None)
                    engine.checkpoints.shared.save(directory, step=state.step, state=contents, keep=keep)
        except ConfigError as error:
            self.saver.count_failure(error, step=state.step, fatal=must_succeed)
            return False
        before = self.saver.newest
        self.saver.save(state.to_loop(), must_succeed=must_succeed)
        return self.saver.newest != before


def _make(folder: Path) -> ConfigError | None:
    """Make a folder in the run directory; return the error if the disk refuses or the run directory is gone."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        return file_error(error, f"{folder} could not be made: {error}")
    return None
