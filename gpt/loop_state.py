"""What the training loop knows besides weights and must know again after a restart; it decides nothing."""

from dataclasses import dataclass
from typing import Any

from gpt.data.skipped import SkippedData
from gpt.health.spikes import SpikeConfig, SpikeDetector


@dataclass
class LoopState:
    """`step`: steps taken. All of it goes into each checkpoint, equal on every rank."""

    step: int
    skipped: SkippedData
    spikes: SpikeDetector
    skipped_steps: int = 0  # whose loss or gradient was not finite
    skipped_in_a_row: int = 0
    rewinds: int = 0

    def to_json(self) -> dict[str, Any]:
        """All but the step, which every checkpoint has anyway."""
        return {
            "skipped": self.skipped.to_json(),
            "spikes": self.spikes.state(),
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": self.skipped_in_a_row,
            "rewinds": self.rewinds,
        }

    @classmethod
    def from_json(cls, table: dict[str, Any], *, step: int, spike: SpikeConfig) -> "LoopState":
        """What `to_json` wrote."""
        return cls(
            step=step,
            skipped=SkippedData.from_json(table["skipped"]),
            spikes=SpikeDetector.from_state(spike, table["spikes"]),
            skipped_steps=int(table["skipped_steps"]),
            skipped_in_a_row=int(table["skipped_in_a_row"]),
            rewinds=int(table["rewinds"]),
        )
