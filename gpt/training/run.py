"""What one training run is made of, where it reports, and how it ends; runs nothing."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from gpt.checkpoint_config import CheckpointConfig, Retention
from gpt.faults import FaultConfig
from gpt.health.spikes import SpikeConfig
from gpt.loop_state import LoopState
from gpt.model.config import ModelConfig
from gpt.telemetry.event_log import EventKind
from gpt.training.batch_ramp import BatchRamp
from gpt.training.config import TrainConfig
from gpt.training.engine import Totals
from gpt.training.schedule import ScheduleConfig

End = Literal["total_tokens", "signal", "stop_after_s", "target_loss"]


class Metrics(Protocol):
    """Where the loop reports; on the main rank only."""

    def log(self, step: int, values: Mapping[str, float | int]) -> None: ...
    def message(self, text: str) -> None: ...
    def event(self, kind: EventKind, *, step: int, text: str, **fields: Any) -> None: ...
    def append(self, name: str, records: Iterable[Mapping[str, Any]]) -> None: ...
    def rewind(self, step: int) -> None: ...


@dataclass(frozen=True)
class Run:
    """Everything that one training run needs."""

    config: TrainConfig
    checkpoint: CheckpointConfig
    faults: FaultConfig
    spike: SpikeConfig
    model: ModelConfig
    schedule: ScheduleConfig
    peak_learning_rate: float
    seq_len: int
    batch: BatchRamp
    micro_batch_size: int
    peak_flops_per_s: float  # of all devices together, for model FLOP utilisation; 0 when unknown
    log_every_steps: int
    compare_copies_every_steps: int  # and before each save; 0: never
    directory: Path
    fast_checkpoints: Path | None  # this run's folder in the second tier, if there is one
    saved_state: dict[str, object]  # what each checkpoint carries besides the loop's: configuration, fingerprints

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.config.steps(self.batch)

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    def samples_seen(self, step: int) -> int:
        """Samples of all steps before `step`, over all data ranks: how many of the run's samples have been read."""
        return self.batch.tokens_seen(step) // self.seq_len

    def due(self, every_tokens: int | None, step: int) -> bool:
        """Whether step `step`, counted from 1, reached or passed a multiple of `every_tokens`."""
        if every_tokens is None or step < 1:
            return False
        return self.batch.tokens_seen(step) // every_tokens > self.batch.tokens_seen(step - 1) // every_tokens

    @property
    def retention(self) -> Retention:
        """Which checkpoints stay; a function of their steps alone, so that a resumed run decides alike."""
        return Retention(self.checkpoint.keep_last, lambda step: self.due(self.checkpoint.keep_every_tokens, step))

    @property
    def epochs_every_steps(self) -> int:
        """How often the epochs are reported: about ten times in a run."""
        return max(1, self.steps // 10)


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    state: LoopState
    tokens_seen: int
    ended: End
    validation: dict[str, Totals]
    tokens_per_s: float  # over the steps of this process, evaluation and saving left out
    checkpoint: Path | None
