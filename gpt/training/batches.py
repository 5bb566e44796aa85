"""Read this data-parallel rank's part of each step; if the token files are corrupt, agree on that over all ranks.

Corrupt data are the exception, so ranks agree only when a rank meets them: it feeds a blank batch and has the step
discarded on all ranks. The samples are then left out like those of data.skip, and the step is taken again at full size;
or the run ends.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from gpt.data.dataset import TrainingData, share_of_step
from gpt.data.order import Ints
from gpt.data.sampling import DamagedSamples
from gpt.data.skipped import SkippedData
from gpt.losses.batch import Batch
from gpt.model.dropout import row_keys
from gpt.telemetry.event_log import RecordEvent
from gpt.token_files.checksums import DamagedTokens, UnreadableTokens
from gpt.training.engine import Engine
from gpt.training.objective import Objective
from gpt.training.run import LoopState, Run

_WHY = "damaged data: "  # the start of the reason for which a position is left out


class BatchReader:
    """The batches of a run for one data-parallel rank. A step's number and what is skipped determine what is read."""

    def __init__(self, run: Run, engine: Engine, data: TrainingData, objective: Objective) -> None:
        self.run, self.data, self.objective = run, data, objective
        self.rank, self.ranks = engine.data_rank, engine.data_size
        self._ahead: tuple[int, SkippedData, Batch] | None = None

    def read(self, step: int, skipped: SkippedData) -> Batch:
        """The batch of step `step`, counted from 0. DamagedSamples: some of it is not what was written."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[:2] == (step, skipped):
            return ahead[2]
        positions = self.positions(step, skipped)
        return self._with_keys(self.objective.batch(self.data.read(positions)), positions)

    def read_ahead(self, step: int, skipped: SkippedData) -> None:
        """Read the batch of a step into pinned memory for the next `read`, while the GPU works.

        Without a GPU there is nothing to hide.
        """
        if not torch.cuda.is_initialized() or step >= self.run.steps:  # type: ignore[no-untyped-call]
            return
        try:
            self._ahead = step, skipped, self.read(step, skipped).pinned()
        except Exception:
            self._ahead = None  # the read of the step itself meets the fault, and handles it

    def blank(self, step: int, skipped: SkippedData) -> Batch:
        """A batch of the same shape that holds nothing, for a step that will be discarded."""
        positions = self.positions(step, skipped)
        return self._with_keys(self.objective.batch(self.data.blank(len(positions))), positions)

    def _with_keys(self, batch: Batch, positions: Ints) -> Batch:
        """The batch with the keys from which dropout draws its masks."""
        return replace(batch, row_keys=torch.from_numpy(row_keys(self.data.seed, positions)))

    def announce(self, step: int, skipped: SkippedData) -> None:
        """Have the system fetch the samples of a step in the background."""
        self.data.announce(self.positions(step, skipped))

    def positions(self, step: int, skipped: SkippedData) -> Ints:
        """The positions of the data's order that this rank reads for step `step`, counted from 0."""
        first, n_samples = self.run.samples_seen(step), self.run.batch.step_tokens(step) // self.run.seq_len
        mine = share_of_step(first, n_samples=n_samples, rank=self.rank, ranks=self.ranks)
        return skipped.positions(int(mine[0]), len(mine))


def epochs_read(run: Run, data: TrainingData, state: LoopState) -> dict[str, float]:
    """Return how many times each corpus has been read through."""
    return data.epochs(run.samples_seen(state.step), state.skipped)


@dataclass(frozen=True)
class Damage:
    """A position of the data's order that cannot be read: the fault, and the documents there.

    `exit_status`: that of the error which ends the run, if it ends.
    """

    position: int
    what: str
    where: str
    exit_status: int

    @property
    def text(self) -> str:
        return f"{self.what}. It holds position {self.position:,} of the data's order ({self.where})"


class CorruptDataHandler:
    """The corrupt data that a run has met. `first_step`: the step at which this process began. `event` records an
    event; `save` saves the run."""

    def __init__(
        self,
        run: Run,
        engine: Engine,
        data: TrainingData,
        *,
        first_step: int,
        event: RecordEvent,
        save: Callable[[], None],
    ) -> None:
        self.run, self.engine, self.data, self.first_step = run, engine, data, first_step
        self.event, self.save = event, save
        # damaged samples of each validation corpus, with the reason
        self.windows: dict[str, dict[int, DamagedTokens]] = {}
        self._reported: set[tuple[str, int]] = set()

    def leave_out(self, state: LoopState, mine: list[Damage]) -> None:
        """Leave out on all ranks what any of them found, or end the run, as the recipe says. Collective.

        `mine`: what this rank found.
        """
        found: dict[int, Damage] = {}
        for theirs in self.engine.all_gather_objects([vars(damage) for damage in mine]):
            for fields in theirs:
                found.setdefault(fields["position"], Damage(**fields))
        damages = [found[position] for position in sorted(found)]
        so_far = sum(r.stop - r.first for r in state.skipped.ranges if r.why.startswith(_WHY))
        if self._stops or so_far + len(damages) > self.run.faults.max_damaged_samples:
            self._stop(state, damages[0].text, exit_status=damages[0].exit_status)
        state.skipped = _without(state.skipped, damages)
        for damage in damages:
            self.event("data_damaged", f"{damage.text}, which is left out", position=damage.position)

    def report_windows(self, state: LoopState) -> None:
        """Log the damaged validation samples found by the last evaluation, or stop the run. Identical on all ranks."""
        for name, windows in self.windows.items():
            for window, what in windows.items():
                if (name, window) in self._reported:
                    continue
                self._reported.add((name, window))
                text = f"{what}. It holds window {window:,} of the validation corpus '{name}'"
                if self._stops:
                    self._stop(state, text, exit_status=what.exit_status)
                self.event("data_damaged", f"{text}, which is left out")

    @property
    def _stops(self) -> bool:
        return self.run.faults.on_damaged_data == "stop"

    def _stop(self, state: LoopState, text: str, *, exit_status: int) -> None:
        """End the run on all ranks, and save what this process has learnt."""
        self.event("data_damaged", text)
        if state.step > self.first_step:
            self.save()
        rule = "Copy the file again, or leave such samples out with --faults.on_damaged_data skip"
        if not self._stops:
            limit = self.run.faults.max_damaged_samples
            rule = f"More samples than faults.max_damaged_samples = {limit:,} are damaged: copy the file again"
        kind = UnreadableTokens if exit_status == UnreadableTokens.exit_status else DamagedTokens
        raise kind(f"{text}. {rule}; no weight has seen it, and the run resumes at step {state.step:,}")


def damage_of(data: TrainingData, positions: Ints, error: DamagedSamples) -> list[Damage]:
    """The damage that this rank met at the positions."""
    found = [(int(positions[row]), what) for row, what in error.rows.items()]
    return [Damage(position, str(what), _location(data, position), what.exit_status) for position, what in found]


def _location(data: TrainingData, position: int) -> str:
    """Corpus, window and documents of a position; the corpus alone if the index is damaged too."""
    try:
        found = data.locate(position)
    except DamagedTokens:
        return f"corpus '{data.corpus_of(position)}'"
    first, last = found.documents[0].document, found.documents[-1].document
    documents = f"document {first:,}" if first == last else f"documents {first:,} to {last:,}"
    return f"corpus '{found.corpus}', window {found.window:,}, {documents}"


def _without(skipped: SkippedData, damages: list[Damage]) -> SkippedData:
    """`skipped` with these positions added."""
    for damage in damages:
        skipped = skipped.with_range(damage.position, damage.position + 1, why=f"{_WHY}{damage.what}")
    return skipped
