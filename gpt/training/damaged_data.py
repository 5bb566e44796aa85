"""Damaged token files in a run: all ranks hear of what any of them finds; the run ends, or goes on without the samples.

Other ranks need to hear of it at the end of the step only: who finds damage feeds zeros, and the step is discarded on
all. The samples are then left out as those of data.skip are, and the step is taken again, of full size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from gpt.data.dataset import DamagedSamples, TrainingData
from gpt.data.order import Ints
from gpt.data.skipped import SkippedData
from gpt.telemetry.event_log import RecordEvent
from gpt.token_files.checksums import DamagedTokens
from gpt.training.batches import read_batch, step_positions
from gpt.training.engine import Batch, Engine
from gpt.training.run import LoopState, Run

_WHY = "damaged data: "  # how the reason begins for which a position is left out


@dataclass(frozen=True)
class Damage:
    """A position of the data's order that cannot be read: what is wrong, and which documents lie there."""

    position: int
    what: str
    where: str

    @property
    def text(self) -> str:
        return f"{self.what}. It holds position {self.position:,} of the data's order ({self.where})"


class DamageKeeper:
    """What a run knows of damage. `event` has something told and kept; `save` saves the run."""

    def __init__(
        self, run: Run, engine: Engine, data: TrainingData, *, event: RecordEvent, save: Callable[[], None]
    ) -> None:
        self.run, self.engine, self.data = run, engine, data
        self.event, self.save = event, save
        self.windows: dict[str, dict[int, str]] = {}  # of each validation corpus, those left out and why
        self._told: set[tuple[str, int]] = set()
        self._first_step: int | None = None

    def read(self, state: LoopState) -> tuple[Batch, list[Damage]]:
        """This data rank's part of the next step; where some of it is damaged, zeros, which are to be discarded."""
        if self._first_step is None:
            self._first_step = state.step
        positions = step_positions(self.engine, self.run, state.step, state.skipped)
        try:
            return read_batch(self.data, positions), []
        except DamagedSamples as error:
            zeros = torch.zeros(len(positions), self.run.seq_len, dtype=torch.int64)
            return Batch(zeros, zeros), damage_of(self.data, positions, error)

    def agree(self, state: LoopState, mine: list[Damage]) -> None:
        """Leave out on all ranks what any of them found, or end the run, as the recipe says. Collective."""
        found: dict[int, Damage] = {}
        for theirs in self.engine.exchange([vars(damage) for damage in mine]):
            for fields in theirs:
                found.setdefault(fields["position"], Damage(**fields))
        damages = [found[position] for position in sorted(found)]
        so_far = sum(r.stop - r.first for r in state.skipped.ranges if r.why.startswith(_WHY))
        if self._stops or so_far + len(damages) > self.run.faults.max_damaged_samples:
            self._stop(state, damages[0].text)
        state.skipped = _without(state.skipped, damages)
        for damage in damages:
            self.event("data_damaged", f"{damage.text}, which is left out", position=damage.position)

    def tell_of_windows(self, state: LoopState) -> None:
        """Of those that the evaluation before has found, the same ones on all ranks; or end the run."""
        for name, windows in self.windows.items():
            for window, what in windows.items():
                if (name, window) in self._told:
                    continue
                self._told.add((name, window))
                text = f"{what}. It holds window {window:,} of the validation corpus '{name}'"
                if self._stops:
                    self._stop(state, text)
                self.event("data_damaged", f"{text}, which is left out")

    @property
    def _stops(self) -> bool:
        return self.run.faults.on_damaged_data == "stop"

    def _stop(self, state: LoopState, text: str) -> None:
        """End the run, on all ranks alike, and keep what it has learnt so far."""
        self.event("data_damaged", text)
        if self._first_step is not None and state.step > self._first_step:
            self.save()
        rule = "Copy the file again, or leave such samples out with --faults.on_damaged_data skip"
        if not self._stops:
            most = self.run.faults.max_damaged_samples
            rule = f"More samples than faults.max_damaged_samples = {most:,} are damaged: copy the file again"
        raise DamagedTokens(f"{text}. {rule}; no weight has seen it, and the run goes on from step {state.step:,}")


def damage_of(data: TrainingData, positions: Ints, error: DamagedSamples) -> list[Damage]:
    """What this rank found when it read the positions."""
    found = [(int(positions[row]), what) for row, what in error.rows.items()]
    return [Damage(position, what, _place(data, position)) for position, what in found]


def _place(data: TrainingData, position: int) -> str:
    """Corpus, window and documents of a position; the corpus alone where the index is damaged too."""
    try:
        place = data.locate(position)
    except DamagedTokens:
        return f"corpus '{data.corpus_of(position)}'"
    first, last = place.documents[0].document, place.documents[-1].document
    documents = f"document {first:,}" if first == last else f"documents {first:,} to {last:,}"
    return f"corpus '{place.corpus}', window {place.window:,}, {documents}"


def _without(skipped: SkippedData, damages: list[Damage]) -> SkippedData:
    """With these positions left out too."""
    for damage in damages:
        skipped = skipped.with_range(damage.position, damage.position + 1, why=f"{_WHY}{damage.what}")
    return skipped
