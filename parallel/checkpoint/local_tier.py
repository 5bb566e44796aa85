"""The local tier: every rank often saves its own shards to a fast disk of its node. No tensor is sent.

A rank's folder is an ordinary checkpoint of one process, with its shards as whole tensors. Together the folders hold
the state of one step, if all ranks have the folder of the same save on the same layout; otherwise they are not used.
Either all ranks publish a save, or none does. Each deletes an older save only after all have published the newer one,
so one step is whole at any time.

LOCAL/run-1f2e3d4c/rank-00012/step-000000123/
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gpt.errors import MACHINE_FAULTS, ConfigError
from parallel.agreement import ALONE, combine, rank_in, run_on_all_ranks, world_size
from parallel.checkpoint.find import discard_after
from parallel.checkpoint.folders import list_checkpoints, list_unusable
from parallel.checkpoint.handle import Checkpoint, CheckpointHeader, read_checkpoint_header, verify_header
from parallel.checkpoint.load import load_checkpoint
from parallel.checkpoint.plan import local
from parallel.errors import CheckpointError, CheckpointFault

_MARK = "fast_tier"  # the key in a checkpoint's state that marks it as one of this tier


def tier_directory(fast_directory: Path, run_directory: Path) -> Path:
    """The folder of a run in the local tier: the run's name, and a digest of its whole path."""
    whole = run_directory.absolute()
    return fast_directory / f"{whole.name}-{hashlib.sha256(str(whole).encode()).hexdigest()[:8]}"


def rank_directory(directory: Path) -> Path:
    """This rank's folder in a run's folder."""
    return directory / f"rank-{rank_in(None):05d}"


def mark(state: dict[str, object], *, save_id: str, layout: dict[str, object]) -> dict[str, object]:
    """The state with the facts that tell whether the folders of all ranks belong together.

    `save_id`: of one save only.
    """
    facts = {"save_id": save_id, "rank": rank_in(None), "ranks": world_size(None), "layout": layout}
    return {**state, _MARK: facts}


def is_local(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint holds the shards of one rank."""
    return _MARK in checkpoint.state


def find_newest_local(
    directory: Path, *, run_id: str, layout: dict[str, object], group: dist.ProcessGroup | None = None
) -> tuple[Checkpoint | None, list[str], bool]:
    """Find the newest save that all ranks hold whole.

    Return this rank's checkpoint of it, why newer ones are skipped, and whether one of them is skipped for a fault of
    a rank's disk, which may pass.

    `run_id` (in the state under that key) and `layout` exclude folders of another run that had the same path, and of
    another layout. Collective; every rank reads and verifies its own folder.
    """
    mine, skipped, fault = _own_headers(directory, run_id=run_id, layout=layout)
    held = {step: save_id for step, (save_id, _) in mine.items()}
    messages, candidates, fault = combine(
        (held, skipped, fault), lambda everyone: _candidates(everyone, directory), group
    )
    for step, why_not in candidates:
        if why_not:
            messages.append(why_not)
            continue
        found, reason, refused = _verify_own(mine[step][1], group)
        if found is not None:
            return found, messages, fault
        messages.append(f"skipped step {step} of {directory}: {reason}")
        fault = fault or refused
    return None, messages, fault


def _candidates(
    everyone: list[tuple[dict[int, str], list[str], bool]], directory: Path
) -> tuple[list[str], list[tuple[int, str]], bool]:
    """Merge each rank's saves by step, messages and fault.

    Return all messages; each step, newest first, with the reason why its folders do not belong together ("" if they
    do); and whether any rank has a fault.
    """
    counts = Counter(step for held, _, _ in everyone for step in held)
    found = []
    for step in sorted(counts, reverse=True):
        why_not = ""
        if counts[step] < len(everyone):
            lacking = next(rank for rank, (held, _, _) in enumerate(everyone) if step not in held)
            why_not = f"skipped step {step} of {directory}: rank {lacking} does not hold it"
        elif len({held[step] for held, _, _ in everyone}) > 1:
            why_not = f"skipped step {step} of {directory}: the ranks' folders are of different saves"
        found.append((step, why_not))
    return _by_reason([text for _, texts, _ in everyone for text in texts]), found, any(one[2] for one in everyone)


def load_local(
    checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor], group: dist.ProcessGroup | None = None
) -> None:
    """Fill this rank's shards of `tensors` from its own checkpoint. Collective."""
    mine = {name: local(tensor) for name, tensor in tensors.items()}
    run_on_all_ranks(
        lambda: load_checkpoint(checkpoint, tensors=mine, complete=True, group=ALONE), group, path=checkpoint.path
    )


def discard_local_after(directory: Path, *, step: int) -> None:
    """Delete this rank's checkpoints of later steps, for a run that resumes from `step`."""
    with suppress(ConfigError):  # an unreadable disk is the same as one without checkpoints
        discard_after(rank_directory(directory), step=step, group=ALONE)


def discard_all_local(directory: Path) -> None:
    """Remove the run's folder from this node, once the run has reached its end on all ranks."""
    shutil.rmtree(directory, ignore_errors=True)  # other ranks of this node remove it at the same time


def _own_headers(
    directory: Path, *, run_id: str, layout: dict[str, object]
) -> tuple[dict[int, tuple[str, CheckpointHeader]], list[str], bool]:
    """Return this rank's checkpoints of this run and layout by step, each with the identity of its save; why others are
    unused; and whether a fault of the disk is the reason for one of them."""
    mine: dict[int, tuple[str, CheckpointHeader]] = {}
    skipped: list[str] = []
    fault = False
    try:
        found = list_checkpoints(rank_directory(directory))
        skipped += [f"skipped {path}: {reason}" for path, reason in list_unusable(rank_directory(directory))]
    except OSError as error:  # a disk that fails: the shared checkpoints remain
        reason = f"skipped {rank_directory(directory)}: it cannot be read: {error.strerror}"
        return mine, [reason], error.errno in MACHINE_FAULTS
    for path in found:
        try:
            header = read_checkpoint_header(path)
            save_id = _save_id(header.state, run_id=run_id, layout=layout)
        except ConfigError as error:
            skipped.append(f"skipped {path}: {getattr(error, 'reason', error)}")
            fault = fault or isinstance(error, CheckpointFault)
        else:
            mine[header.manifest.step] = save_id, header
    return mine, skipped, fault


def _verify_own(header: CheckpointHeader, group: dist.ProcessGroup | None) -> tuple[Checkpoint | None, str, bool]:
    """Return this rank's checkpoint if those of all ranks are whole; else the reason of the first that is not, and
    whether a disk refused to read any."""
    found, reason, fault = None, "", False
    try:
        found = verify_header(header, group=ALONE)
    except CheckpointError as error:
        reason, fault = error.reason, isinstance(error, CheckpointFault)

    def first_reason(everyone: list[tuple[str, bool]]) -> tuple[str, bool]:
        return next((one for one, _ in everyone if one), ""), any(refused for _, refused in everyone)

    bad, fault = combine((reason, fault), first_reason, group)
    return (None, bad, fault) if bad else (found, "", False)


def _save_id(state: Mapping[str, Any], *, run_id: str, layout: dict[str, object]) -> str:
    """The identity of the save. ConfigError when it is of another run, layout or rank."""
    facts = state.get(_MARK)
    if not isinstance(facts, dict) or state.get("run_id") != run_id:
        raise ConfigError("it is of another run")
    if (facts["rank"], facts["ranks"]) != (rank_in(None), world_size(None)):
        raise ConfigError(
            f"it was saved by rank {facts['rank']} of {facts['ranks']}, and there are {world_size(None)} now"
        )
    changed = [
        f"{key} {facts['layout'].get(key)} then, {layout[key]} now"
        for key in layout
        if facts["layout"].get(key) != layout[key]
    ]
    if changed:
        raise ConfigError(f"it was saved on another layout ({', '.join(changed)})")
    return str(facts["save_id"])


def _by_reason(texts: list[str]) -> list[str]:
    """The first text of each reason, with the number of the others: many ranks report the same."""
    counts: dict[str, list[str]] = {}
    for text in texts:
        counts.setdefault(text.rpartition(": ")[2], []).append(text)
    return [found[0] + (f" (and {len(found) - 1} more)" if len(found) > 1 else "") for found in counts.values()]
