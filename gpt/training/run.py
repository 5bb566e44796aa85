"""The parts of a training run, the state of its loop, the values that it logs, and how it ends."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from gpt.adapters.config import AdapterConfig, train_flops_per_token
from gpt.data.skipped import SkippedData
from gpt.health.spikes import SpikeConfig, SpikeDetector
from gpt.model.config import ModelConfig
from gpt.telemetry.event_log import EventKind
from gpt.telemetry.memory import memory_values, peak_memory_bytes
from gpt.training.config import CheckpointConfig, FaultConfig, Retention, TrainConfig
from gpt.training.engine import StepResult, Totals
from gpt.training.schedule import BatchRamp, ScheduleConfig
from gpt.training.validation import Best

End = Literal["total_tokens", "signal", "interrupt", "stop_after_s", "target_loss"]


@dataclass
class LoopState:
    """The state of the loop after `step` steps. All of it goes into each checkpoint, equal on every rank."""

    step: int
    skipped: SkippedData
    spikes: SpikeDetector
    skipped_steps: int = 0  # whose loss or gradient was not finite
    skipped_in_a_row: int = 0
    rewinds: int = 0
    best: Best | None = None  # evaluation so far, by checkpoint.keep_best
    phases: dict[str, Any] = field(default_factory=dict)  # of a program that alternates phases, as JSON

    def to_json(self) -> dict[str, Any]:
        """Everything but the step, which a checkpoint stores separately."""
        return {
            "skipped": self.skipped.to_json(),
            "spikes": self.spikes.state(),
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": self.skipped_in_a_row,
            "rewinds": self.rewinds,
            **({} if self.best is None else {"best": asdict(self.best)}),
            **({"phases": self.phases} if self.phases else {}),
        }

    @classmethod
    def from_json(cls, table: dict[str, Any], *, step: int, spike: SpikeConfig) -> "LoopState":
        """Restore the result of `to_json`."""
        return cls(
            step=step,
            skipped=SkippedData.from_json(table["skipped"]),
            spikes=SpikeDetector.from_state(spike, table["spikes"]),
            skipped_steps=int(table["skipped_steps"]),
            skipped_in_a_row=int(table["skipped_in_a_row"]),
            rewinds=int(table["rewinds"]),
            best=Best.from_json(table["best"]) if "best" in table else None,
            phases=dict(table.get("phases", {})),
        )

    def rewind_to(self, saved: dict[str, object], *, spike: SpikeConfig, skipped: SkippedData) -> None:
        """Take the step and spike detector of a checkpoint's state; count the rewind, and leave out more data."""
        step, table = saved["step"], saved["loop"]
        assert isinstance(step, int)
        assert isinstance(table, dict)
        earlier = LoopState.from_json(table, step=step, spike=spike)
        self.step, self.spikes, self.skipped_in_a_row = step, earlier.spikes, earlier.skipped_in_a_row
        self.skipped, self.rewinds, self.best = skipped, self.rewinds + 1, earlier.best


class Metrics(Protocol):
    """The loop's reports, on the main rank only."""

    def log(self, step: int, values: Mapping[str, float | int]) -> None: ...
    def message(self, text: str) -> None: ...
    def samples(self, step: int, prompts: Sequence[str], texts: Sequence[str]) -> None: ...
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
    replica_check_every_steps: int  # and before each save; 0: never
    directory: Path
    local_checkpoints: Path | None  # this run's folder in the local tier, if it has one
    saved_state: dict[str, object]  # in each checkpoint besides the loop's: configuration, fingerprints
    adapter: AdapterConfig | None = None  # adapters that train while the model is frozen

    @property
    def flops_per_token(self) -> float:
        """Floating-point operations of forward and backward for one token."""
        return train_flops_per_token(self.model, self.adapter, self.seq_len)

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.config.steps(self.batch)

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    def samples_seen(self, step: int) -> int:
        """The number of samples of all steps before `step`, over all data ranks."""
        return self.batch.tokens_seen(step) // self.seq_len

    def due(self, every_tokens: int | None, step: int) -> bool:
        """Return whether step `step`, counted from 1, reached or passed a multiple of `every_tokens`."""
        if every_tokens is None or step < 1:
            return False
        return self.batch.tokens_seen(step) // every_tokens > self.batch.tokens_seen(step - 1) // every_tokens

    @property
    def retention(self) -> Retention:
        """Return which checkpoints stay. It depends on their steps alone, so a resumed run keeps the same ones."""
        return Retention(self.checkpoint.keep_last, lambda step: self.due(self.checkpoint.keep_every_tokens, step))

    def retention_of(self, state: LoopState) -> Retention:
        """Return which checkpoints stay: `retention`, and the best one so far."""
        best, keep = None if state.best is None else state.best.step, self.retention
        return Retention(keep.last, lambda step: step == best or keep.permanent(step))

    @property
    def epochs_every_steps(self) -> int:
        """Steps between two reports of progress: about ten reports in a run."""
        return max(1, self.steps // 10)


@dataclass(frozen=True)
class Outcome:
    """The way a run ended."""

    state: LoopState
    tokens_seen: int
    ended: End
    validation: dict[str, Totals]
    tokens_per_s: float  # over the steps of this process, evaluation and saving left out
    checkpoint: Path | None


def step_values(run: Run, result: StepResult, lr: float, *, step: int, elapsed_s: float) -> dict[str, float | int]:
    """The values logged for one step."""
    tokens_per_s = run.batch.step_tokens(step - 1) / elapsed_s
    values: dict[str, float | int] = {
        "loss": result.loss.mean,
        "gradient_norm": result.gradient_norm,
        "learning_rate": lr,
        "tokens_per_s": tokens_per_s,
        "tokens_seen": run.batch.tokens_seen(step),
        "step_s": elapsed_s,
        **result.loss.metrics,
        **memory_values(),  # of the main rank and its machine
    }
    if (memory := peak_memory_bytes()) is not None:
        values["peak_memory_bytes"] = memory  # of the main rank
    if run.peak_flops_per_s:
        values["mfu"] = run.flops_per_token * tokens_per_s / run.peak_flops_per_s
    return values
