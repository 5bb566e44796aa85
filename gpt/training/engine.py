"""What the training loop may ask of the hardware; parallel/engines/ has what answers."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from gpt.inference.generation import Continuation
from gpt.inference.model import InferenceModel
from gpt.inference.sampling import GREEDY, Sampling
from gpt.training.config import Retention


class Batch(NamedTuple):
    """Token ids and what should follow each, both (n, t) int64 on the CPU."""

    inputs: Tensor
    targets: Tensor


class StepResult(NamedTuple):
    """What one optimizer step found, over every rank."""

    loss: "Totals"  # of all batches since the step before
    gradient_norm: float  # before clipping
    skipped: bool  # loss or gradient was not finite, and no weight or moment changed, on any rank
    discarded: bool  # a rank asked for it, and no weight or moment changed, on any rank
    flags: tuple[bool, ...]  # for each flag whether any rank raised it
    metrics: Mapping[str, float] = MappingProxyType({})  # what the loss reports beside itself, by target


class Totals(NamedTuple):
    """A loss summed over every rank, in nats, and the number of tokens in the sum."""

    loss_sum: float
    tokens: int

    @property
    def mean(self) -> float:
        return self.loss_sum / self.tokens if self.tokens else float("nan")


@dataclass(frozen=True)
class SaveResult:
    """How a save ended that went on beside training: `path`, or `error` in one line."""

    step: int
    path: Path | None
    error: str | None
    stall_s: float  # training waited so long, on the slowest rank
    write_s: float  # from the copy in host memory to the published checkpoint, on the slowest rank
    bytes: int  # on disk, of all ranks together
    each_its_own: bool = False


class Engine(Protocol):
    """A model and its optimizer spread over processes. Every method must be called by every rank, in the same order.

    A rank feeds the sequences of its data rank: `data_rank` of `data_size`. Ranks that share a data rank (tensor
    and pipeline ranks) pass equal batches.
    """

    data_rank: int
    data_size: int
    is_main: bool  # the one rank that prints and writes metrics

    def forward_backward(self, batch: Batch) -> None:
        """Add the gradients of a batch, in micro-batches, to those since the last step. Waits for nothing."""
        ...

    def optimizer_step(
        self, learning_rate: float, *, flags: tuple[bool, ...] = (), discard: bool = False
    ) -> StepResult:
        """Divide the gradients by the number of targets, clip them to the configured global norm, update, clear.

        Where loss or norm is not finite, or any rank wants to `discard` the batch, nothing is updated,
        on no rank. One collective of a few numbers over all ranks, and the step's one wait for the device, before the
        update is queued.
        """
        ...

    def evaluate(self, batches: Iterable[Batch]) -> Totals:
        """The loss over batches, without gradients. All data ranks pass equally many batches of one shape."""
        ...

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (n, t, vocab_size) of token ids (n, t), on every rank of this data rank, without gradients."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        stop_ids: Collection[int] = (),
        n_ids: int | None = None,
    ) -> list[Continuation]:
        """See gpt.inference.generation.generate. All ranks pass equal arguments and get equal results."""
        ...

    def as_model(self) -> AbstractContextManager[InferenceModel]:
        """The model to be asked for scores and texts while training stands still: inside, data ranks may each have
        questions of their own. No weight changes."""
        ...

    def exchange(self, values: list[Any]) -> list[list[Any]]:
        """Every rank's values, few and plain, by rank."""
        ...

    def check_replicas(self) -> str | None:
        """What differs between copies of one weight or moment on several ranks, in words, the same on every rank; None
        where nothing does or nothing is held twice."""
        ...

    def save(self, directory: Path, *, step: int, state: dict[str, object], keep: Retention) -> Path:
        """Publish a checkpoint of weights, optimizer and `state` (JSON, equal on all ranks)."""
        ...

    def start_save(
        self, directory: Path, *, step: int, state: dict[str, object], keep: Retention, each_its_own: bool = False
    ) -> float:
        """As `save`, but only a copy in host memory is waited for, and the save before; the seconds of that.

        How it went comes out of `finished_saves`. `each_its_own`: every rank saves what it holds into its own folder of
        `directory`, which may be a disk of its node; for the same layout and number of ranks only.
        """
        ...

    def finished_saves(self, *, wait: bool) -> list[SaveResult]:
        """The started saves that have ended since the last call, in order, the same on all ranks; `wait`: all of them.

        Cheap enough for every step: only while a save is under way does it cost one small reduction.
        """
        ...

    def load(self, path: Path, *, verified: bool = False) -> dict[str, object]:
        """Weights and optimizer from a checkpoint of any layout; its state. `verified`: its digests are known good."""
        ...

    def load_newest(self, directory: Path, *, at_most: int) -> dict[str, object] | None:
        """Load the newest whole checkpoint of a step up to `at_most`; its state, or None where there is none."""
        ...

    def discard_after(self, directory: Path, *, step: int, each_its_own: bool = False) -> None:
        """Remove the checkpoints of later steps; `each_its_own` as for `start_save`."""
        ...
