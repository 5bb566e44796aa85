"""Save and load an engine's weights and optimizer: shared checkpoints, and node-local ones of each rank."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gpt.adapters.config import is_adapter
from gpt.training.config import Retention
from gpt.training.engine import SaveEstimate, SaveResult, SharedCheckpointStore, VerifiedCheckpoint
from parallel.adapters.base import with_bases
from parallel.adapters.merge import load_merged
from parallel.agreement import broadcast_object, gather_scatter
from parallel.axes.gradients import local
from parallel.checkpoint.background import BackgroundSaver, BackgroundWriter
from parallel.checkpoint.estimate import estimate_local, estimate_shared
from parallel.checkpoint.find import discard_after, find_latest
from parallel.checkpoint.handle import Checkpoint
from parallel.checkpoint.load import has_shape, load_checkpoint
from parallel.checkpoint.local_tier import discard_local_after, load_local, mark, rank_directory
from parallel.checkpoint.plan import make_rank_plan
from parallel.checkpoint.save import save_checkpoint


class SavedTensors(Protocol):
    """What an engine saves of its model and optimizer: tensors by name, and the optimizer's step count.

    A weight has the name "model.NAME", and its optimizer state "optimizer.KEY.NAME". NAME is the parameter's canonical
    name, its shape that of the whole model on one device, and each tensor a DTensor or a whole one.
    """

    def by_name(self) -> dict[str, Tensor]:
        """Weights and optimizer state with their present values. An engine may make copies in this form.

        Every rank must call it.
        """
        ...

    def weights(self) -> dict[str, Tensor]:
        """The weights alone. Every rank must call it."""
        ...

    def with_steps(self, state: dict[str, object]) -> dict[str, object]:
        """The state with the optimizer's step count, which `finish_load` restores."""
        ...

    def finish_load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any] | None) -> None:
        """Take over what a checkpoint has put into `tensors`, a result of `by_name` or a part of `weights`.

        `state`: the checkpoint's, with the step count; None if only weights were loaded. Every rank must call it.
        """
        ...


class SharedCheckpoints:
    """See gpt.training.engine.SharedCheckpointStore."""

    def __init__(self, tensors: SavedTensors, writer: BackgroundWriter) -> None:
        self._tensors, self._writer = tensors, writer
        self._saver = BackgroundSaver(tensors.by_name, writer)

    def prepare(self, directory: Path) -> None:
        self._saver.prepare(directory)

    def estimate(self, directory: Path, *, state: dict[str, object], step: int) -> SaveEstimate:
        return estimate_shared(self._saver, directory, state=state, step=step)

    def save(self, directory: Path, *, step: int, state: dict[str, object], keep: Retention) -> Path:
        self._writer.wait()
        state = self._tensors.with_steps(state)
        return save_checkpoint(directory, step=step, tensors=self._tensors.by_name(), state=state, keep=keep)

    def start_save(self, directory: Path, *, step: int, state: dict[str, object], keep: Retention) -> float:
        return self._saver.start(directory, step=step, state=self._tensors.with_steps(state), keep=keep)

    def finished(self, *, wait: bool) -> list[SaveResult]:
        return self._saver.finished(wait=wait)

    def load(self, checkpoint: VerifiedCheckpoint) -> None:
        assert isinstance(checkpoint, Checkpoint)
        tensors = self._tensors.by_name()
        rounded = any(is_adapter(name) for name in checkpoint.index)  # the precision decides the base's dtype
        load_checkpoint(checkpoint, tensors=tensors, complete=True, rounded=rounded)
        self._tensors.finish_load(tensors, checkpoint.state)

    def load_weights(self, checkpoint: VerifiedCheckpoint, *, optional: tuple[str, ...] = ()) -> list[str]:
        assert isinstance(checkpoint, Checkpoint)
        chain = with_bases(checkpoint)
        tensors = {name: tensor for name, tensor in self._tensors.weights().items() if not is_adapter(name)}

        def left_out() -> list[str]:
            candidates = [name for name in tensors if name.removeprefix("model.").startswith(optional)]
            shapes = {name: tuple(tensors[name].shape) for name in candidates}
            return [name for name in shapes if not any(has_shape(each, name, shapes[name]) for each in chain)]

        def union(by_rank: list[list[str]]) -> list[list[str]]:
            return [sorted(set().union(*by_rank))] * len(by_rank)

        names = gather_scatter(left_out, union, None, path=checkpoint.path)
        loaded = {name: tensors[name] for name in tensors if name not in names}
        load_merged(chain, loaded, rounded=True)  # a frozen base may be held in bf16
        self._tensors.finish_load(loaded, None)
        return [name.removeprefix("model.") for name in names]

    @torch.no_grad()
    def move_weights(self, source: SharedCheckpointStore, *, share: float) -> None:
        assert isinstance(source, SharedCheckpoints)
        mine, others = self._tensors.weights(), source._tensors.weights()
        for name, tensor in mine.items():
            local(tensor).lerp_(local(others[name]), share)
        self._tensors.finish_load(mine, None)

    def load_newest(self, directory: Path, *, at_most: int) -> dict[str, Any] | None:
        self._writer.wait()
        found, _ = find_latest(directory, at_most=at_most)
        if found is None:
            return None
        self.load(found)
        return found.state

    def discard_after(self, directory: Path, *, step: int) -> None:
        self._writer.wait()
        discard_after(directory, step=step)


class LocalCheckpoints:
    """See gpt.training.engine.CheckpointStore. Every rank saves its shards into its own folder of `directory`.

    `sharding`: settings.sharding_signature; a checkpoint is for the same one only.
    """

    def __init__(self, tensors: SavedTensors, writer: BackgroundWriter, *, sharding: dict[str, object]) -> None:
        self._tensors, self._writer, self._sharding = tensors, writer, sharding
        self._saver = BackgroundSaver(tensors.by_name, writer, make_plan=make_rank_plan)
        self._next_save_id = _save_ids()

    def prepare(self, directory: Path) -> None:
        self._saver.prepare(directory)

    def estimate(self, directory: Path, *, state: dict[str, object], step: int) -> SaveEstimate:
        return estimate_local(self._saver, directory.parent, state=state, step=step)

    def start_save(self, directory: Path, *, step: int, state: dict[str, object], keep: Retention) -> float:
        state = mark(self._tensors.with_steps(state), save_id=self._next_save_id(), layout=self._sharding)
        mine = rank_directory(directory)
        return self._saver.start(mine, step=step, state=state, keep=keep, private_below=directory.parent)

    def finished(self, *, wait: bool) -> list[SaveResult]:
        return self._saver.finished(wait=wait)

    def load(self, checkpoint: VerifiedCheckpoint) -> None:
        assert isinstance(checkpoint, Checkpoint)
        tensors = self._tensors.by_name()
        load_local(checkpoint, tensors)
        self._tensors.finish_load(tensors, checkpoint.state)

    def discard_after(self, directory: Path, *, step: int) -> None:
        self._writer.wait()
        discard_local_after(directory, step=step)


@dataclass(frozen=True)
class EngineCheckpoints:
    """See gpt.training.engine.Checkpoints."""

    shared: SharedCheckpoints
    local: LocalCheckpoints


def open_checkpoints(tensors: SavedTensors, *, device: torch.device, sharding: dict[str, object]) -> EngineCheckpoints:
    """Both stores of an engine, over one writer. Communicates nothing yet."""
    writer = BackgroundWriter(device)
    return EngineCheckpoints(SharedCheckpoints(tensors, writer), LocalCheckpoints(tensors, writer, sharding=sharding))


def _save_ids() -> Callable[[], str]:
    """Gives identities of saves, the same on all ranks, and each only once: after a restart, or for the same step after
    a rewind, there are others. The first call is collective."""
    word: str | None = None
    count = 0

    def next_id() -> str:
        nonlocal word, count
        word = word or broadcast_object(secrets.token_hex(8), None)
        count += 1
        return f"{word}-{count - 1}"

    return next_id
