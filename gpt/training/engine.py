"""The interface between the training loop and the hardware. parallel/engines/ implements it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from gpt.inference.model import InferenceModel
from gpt.losses.batch import Batch
from gpt.training.config import Retention

NO_METRICS: Mapping[str, float] = MappingProxyType({})


class StepResult(NamedTuple):
    """The result of one optimizer step, over all ranks."""

    loss: "Totals"  # of all batches since the previous step
    gradient_norm: float  # before clipping
    skipped: bool  # loss or gradient was not finite, or nothing had a target: no rank updated anything
    discarded: bool  # a rank asked for it: nothing was updated, on any rank
    flags: tuple[bool, ...]  # for each flag, whether any rank raised it

    @property
    def updated(self) -> bool:
        """Whether the weights were updated, on every rank."""
        return not self.skipped and not self.discarded


class Totals(NamedTuple):
    """A loss summed over every rank, in nats, the number of targets in the sum, and the loss's metrics per target."""

    loss_sum: float
    tokens: int
    metrics: Mapping[str, float] = NO_METRICS

    @property
    def mean(self) -> float:
        return self.loss_sum / self.tokens if self.tokens else float("nan")


@dataclass(frozen=True)
class SaveResult:
    """The result of a background save: `path`, or `error` in one line."""

    step: int
    path: Path | None
    error: str | None
    stall_s: float  # how long training waited, on the slowest rank
    write_s: float  # from the copy in host memory to the published checkpoint, on the slowest rank
    bytes: int  # on disk, of all ranks together


@dataclass(frozen=True)
class SaveEstimate:
    """The size of one checkpoint and the free space for it."""

    where: str  # the directory; node-local, host and directory of the disk with the least space left
    size_bytes: int  # of all files there, with a state like the one given
    free_bytes: int
    write_s: float | None  # of the slowest rank, by a short trial; None where none was made


class VerifiedCheckpoint(Protocol):
    """A checkpoint whose files have been found undamaged. parallel/checkpoint/ finds and opens them."""

    @property
    def path(self) -> Path: ...

    @property
    def step(self) -> int: ...

    @property
    def state(self) -> dict[str, Any]:
        """The saved values other than tensors."""
        ...


class CheckpointStore(Protocol):
    """An engine's checkpoints in one kind of storage. Every method must be called by every rank, in the same order.

    `directory`: of one run's checkpoints, the same on all ranks. `state`: JSON, equal on all ranks.
    """

    def prepare(self, directory: Path) -> None:
        """Allocate the host memory of background saves. Without this, the first save does."""
        ...

    def estimate(self, directory: Path, *, state: dict[str, object], step: int) -> SaveEstimate:
        """The size of a checkpoint of `step`, and the free space."""
        ...

    def start_save(self, directory: Path, *, step: int, state: dict[str, object], keep: Retention) -> float:
        """Start a background save; return the seconds that training waited.

        Training waits for a copy to host memory, and for a save that is still under way. `finished` returns the result.
        """
        ...

    def finished(self, *, wait: bool) -> list[SaveResult]:
        """The background saves that have ended since the last call, in order, the same on all ranks. `wait`: all saves.

        Cheap enough for every step: it costs one small reduction while a save is under way, and nothing otherwise.
        """
        ...

    def load(self, checkpoint: VerifiedCheckpoint) -> None:
        """Load weights and optimizer."""
        ...

    def discard_after(self, directory: Path, *, step: int) -> None:
        """Delete the checkpoints of steps after `step`."""
        ...


class SharedCheckpointStore(CheckpointStore, Protocol):
    """Checkpoints that all ranks write together to storage that all can read. Any layout can load them."""

    def save(self, directory: Path, *, step: int, state: dict[str, object], keep: Retention) -> Path:
        """Publish a checkpoint of weights, optimizer and `state`, and wait until it is on disk."""
        ...

    def load_weights(self, checkpoint: VerifiedCheckpoint, *, optional: tuple[str, ...] = ()) -> list[str]:
        """Load the weights alone; the optimizer stays as it is. Return the names of parameters that were not loaded.

        They begin with one of `optional`, and the checkpoint lacks them or has them in another shape. The names are the
        same on all ranks. ConfigError if any other parameter does not fit.
        """
        ...

    def move_weights(self, source: "SharedCheckpointStore", *, share: float) -> None:
        """Move each weight by `share` of the way to the same weight of `source`, an engine of one model and layout.

        For a moving average of weights. The optimizer stays as it is. Communicates nothing on the native engine.
        """
        ...

    def load_newest(self, directory: Path, *, at_most: int) -> dict[str, Any] | None:
        """Load the newest whole checkpoint of a step up to `at_most`; return its state, or None if there is none."""
        ...


class Checkpoints(Protocol):
    """All storage of an engine. Saves of both stores share host memory and run one at a time."""

    @property
    def shared(self) -> SharedCheckpointStore:
        """On storage that all nodes share: for any restart."""
        ...

    @property
    def local(self) -> CheckpointStore:
        """The local tier: each rank saves its own shards to a disk of its node, for a restart on the same layout."""
        ...


class Engine(Protocol):
    """A model and its optimizer spread over processes. Every method must be called by every rank, in the same order.

    A rank feeds the rows of its data-parallel rank: `data_rank` of `data_size`. Ranks that share a data-parallel rank
    (tensor and pipeline ranks) pass equal batches.
    """

    data_rank: int
    data_size: int
    is_main: bool  # the one rank that prints and writes metrics

    @property
    def checkpoints(self) -> Checkpoints:
        """The stores of its weights and optimizer."""
        ...

    def forward_backward(self, batch: Batch) -> None:
        """Add the gradients of a batch, in micro-batches, to those since the last step. Does not synchronise.

        After an exception the engine cannot be used further: gradients of earlier micro-batches may remain, and peers
        may wait in a collective. Build another engine and load a checkpoint, as a restart does.
        """
        ...

    def optimizer_step(
        self, learning_rate: float, *, flags: tuple[bool, ...] = (), discard: bool = False
    ) -> StepResult:
        """Divide the gradients by the number of targets, clip them to the configured global norm, update, clear.

        If the loss or norm is not finite, or any rank wants to `discard` the batch, no rank updates anything. Costs one
        all-reduce of a few numbers and the step's only wait for the device, before the update is queued.
        """
        ...

    def named_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Each trainable parameter's canonical name and gradient: whole, fp32, of its shape in the unsharded model.

        Divided by the number of targets of all ranks, not clipped. Call it after the last forward_backward of a step
        and before optimizer_step, whose result it does not change. Every rank iterates to the end and gets the
        parameters of its stages; a tied weight comes once, from the ranks of the first stage. It gathers one tensor
        at a time, so it needs little memory and much time.
        """
        ...

    def evaluate(self, batches: Iterable[Batch]) -> Totals:
        """The loss over batches, without gradients. All data-parallel ranks pass equally many batches of one shape."""
        ...

    def token_values(self, batch: Batch, *, before_each: Callable[[], None] = lambda: None) -> Tensor:
        """One number for each token of a batch, (n, t) in at least fp32 on the engine's device, without gradient.

        Of a language model the log-probability of each target, of a scalar head its output; (n, t, c) if the loss has
        gpt.losses.base.SeveralValues. See gpt.losses.base.TokenValues, which the objective's loss must implement. The
        same on all ranks of a data rank.

        An engine that trains runs the code of its training forward, in micro-batches of the same size. If these hold
        the same rows, the values equal those of the loss in the next `forward_backward`, bit for bit. Call it before
        the step's first `forward_backward`. Under ZeRO 3, all data ranks must pass equally many rows.

        `before_each` is called before each micro-batch, such as a heartbeat; the Megatron engine calls it once.
        """
        ...

    def as_model(self, *, together: bool = False, in_turns: bool = False) -> AbstractContextManager[InferenceModel]:
        """The model for inference, while training waits. No weight changes.

        Data ranks may use it differently. `together`: they pass equal requests, and all get the results of one of them.
        Where a pass needs all data ranks (ZeRO 3), they count as one, unless `in_turns`: each then works on its own
        requests, and calls `InferenceModel.finish` after its last pass.
        """
        ...

    def weights_digest(self) -> str:
        """A digest of all weights, equal if two runs have the same model, bit for bit.

        Holds one whole weight in memory at a time.
        """
        ...

    def all_gather_objects(self, values: list[Any]) -> list[list[Any]]:
        """Return the plain values of every rank that has any: one list per rank. Use it rarely and for few values."""
        ...

    def check_replicas(self) -> str | None:
        """Compare copies of weights and moments on several ranks, and describe the differences, the same on every rank.

        None: nothing differs, or nothing is held twice.
        """
        ...
