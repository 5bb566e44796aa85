"""The second tier: every rank keeps what it holds on a fast disk of its node, often; it never sends a tensor.

A rank's folder is an ordinary checkpoint of one process, with what it holds as whole tensors. Together they make the
state of one step if all ranks have the folder of the same save, on the same layout; else the tier is not used. All
ranks publish, or none, and each deletes an older one only after all have published, so one step is always there whole.

FAST/run-1f2e3d4c/rank-00012/step-000000123/
"""

import hashlib
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gpt.errors import ConfigError
from parallel.agreement import ALONE, exchange, rank_in, together, world_size
from parallel.checkpoint import find as checkpoint
from parallel.checkpoint.folders import list_checkpoints
from parallel.checkpoint.plan import local

MARK = "fast_tier"  # the key of a checkpoint's state that says it is of this tier


@dataclass(frozen=True)
class FastCheckpoint:
    """What all ranks have of one save; `path` is this rank's."""

    step: int
    path: Path


def tier_directory(fast_directory: Path, run_directory: Path) -> Path:
    """The folder of a run in the second tier: its name, and a digest of its whole path."""
    whole = run_directory.absolute()
    return fast_directory / f"{whole.name}-{hashlib.sha256(str(whole).encode()).hexdigest()[:8]}"


def rank_directory(directory: Path) -> Path:
    """This rank's folder of a run's folder."""
    return directory / f"rank-{rank_in(None):05d}"


def marked(state: dict[str, object], *, save_id: str, layout: dict[str, object]) -> dict[str, object]:
    """The state with what tells whether the folders of all ranks belong together: `save_id` is of one save alone."""
    mark = {"save_id": save_id, "rank": rank_in(None), "ranks": world_size(None), "layout": layout}
    return {**state, MARK: mark}


def find_newest(
    directory: Path, *, run_id: str, layout: dict[str, object], group: dist.ProcessGroup | None = None
) -> tuple[FastCheckpoint | None, list[str]]:
    """The newest step that all ranks hold whole, of one save; and why newer ones are not used.

    `run_id` (in the state under that key) and `layout` tell the folders of another run, which had the same path, and of
    another layout. Collective; every rank reads its own folder, and verifies it.
    """
    mine: dict[int, tuple[str, Path]] = {}
    said: list[str] = []
    try:
        found = list_checkpoints(rank_directory(directory))
    except OSError as error:  # a disk that fails: the first tier is there all the same
        found, said = [], [f"skipped {rank_directory(directory)}: it cannot be read: {error.strerror}"]
    for path in found:
        try:
            state = checkpoint.read_state(path)
            save_id = _save_id(state, run_id=run_id, layout=layout)
        except ConfigError as error:
            said.append(f"skipped {path}: {getattr(error, 'reason', error)}")
        else:
            mine[int(state["step"])] = (save_id, path)
    everyone = exchange(({step: save_id for step, (save_id, _) in mine.items()}, said), group)
    messages = _by_reason([text for _, texts in everyone for text in texts])
    for step in sorted({step for held, _ in everyone for step in held}, reverse=True):
        lacking = [rank for rank, (held, _) in enumerate(everyone) if step not in held]
        if lacking:
            messages.append(f"skipped step {step} of {directory}: rank {lacking[0]} does not hold it")
        elif len({held[step] for held, _ in everyone}) > 1:
            messages.append(f"skipped step {step} of {directory}: the ranks' folders are of different saves")
        else:
            path = mine[step][1]
            bad = [reason for reason in exchange(checkpoint.verify(path, group=ALONE), group) if reason is not None]
            if not bad:
                return FastCheckpoint(step, path), messages
            messages.append(f"skipped step {step} of {directory}: {bad[0]}")
    return None, messages


def load(path: Path, tensors: Mapping[str, torch.Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Fill what this rank holds of `tensors` from its own folder, which `find_newest` has verified. Collective."""
    mine = {name: local(tensor) for name, tensor in tensors.items()}
    together(lambda: checkpoint.load(path, tensors=mine, complete=True, verified=True, group=ALONE), group, path=path)


def discard_after(directory: Path, *, step: int) -> None:
    """Delete this rank's folders of later steps, for a run that goes on from `step`."""
    with suppress(ConfigError):  # what cannot be looked at on a disk that fails cannot be found there either
        checkpoint.discard_after(rank_directory(directory), step=step, group=ALONE)


def discard_all(directory: Path) -> None:
    """Remove the run's folder from this node, for a run that has reached its end on all ranks."""
    shutil.rmtree(directory, ignore_errors=True)  # other ranks of this node are at it too


def _save_id(state: Mapping[str, Any], *, run_id: str, layout: dict[str, object]) -> str:
    """What identifies the save; ConfigError when it is of another run, layout or rank."""
    mark = state.get(MARK)
    if not isinstance(mark, dict) or state.get("run_id") != run_id:
        raise ConfigError("it is of another run")
    if (mark["rank"], mark["ranks"]) != (rank_in(None), world_size(None)):
        raise ConfigError(
            f"it was saved by rank {mark['rank']} of {mark['ranks']}, and there are {world_size(None)} now"
        )
    changed = [
        f"{key} {mark['layout'].get(key)} then, {layout[key]} now"
        for key in layout
        if mark["layout"].get(key) != layout[key]
    ]
    if changed:
        raise ConfigError(f"it was saved on another layout ({', '.join(changed)})")
    return str(mark["save_id"])


def _by_reason(texts: list[str]) -> list[str]:
    """Many ranks have the same to say: the first of each reason, with the number of the others."""
    counts: dict[str, list[str]] = {}
    for text in texts:
        counts.setdefault(text.rpartition(": ")[2], []).append(text)
    return [found[0] + (f" (and {len(found) - 1} more)" if len(found) > 1 else "") for found in counts.values()]
