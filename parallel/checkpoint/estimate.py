"""Estimate a checkpoint before the first save: its size to the byte, and its time by a short trial."""

import os
import shutil
import socket
import time
from pathlib import Path

from gpt.training.config import Retention
from gpt.training.engine import SaveEstimate
from parallel.agreement import broadcast_object, combine, gather_scatter, rank_in, run_on_all_ranks
from parallel.checkpoint.background import BackgroundSaver
from parallel.checkpoint.files import write_file
from parallel.checkpoint.folders import make_hidden, step_name
from parallel.checkpoint.manifest import encode_state
from parallel.checkpoint.plan import WritePlan
from parallel.checkpoint.save import Save

_TRIAL_BYTES = 32 * 2**20  # at most, per rank


def estimate_shared(saver: BackgroundSaver, directory: Path, *, state: dict[str, object], step: int) -> SaveEstimate:
    """Size, time and free space of a shared checkpoint. All ranks write a little at the same time, and remove it.

    Collective. CheckpointError on all ranks when the directory cannot be written to, or a trial does not fit.
    """
    directory = Path(directory)
    plan, final = saver.plan(directory), directory / step_name(step)
    write_s = _trial_write_s(plan, final)
    save = Save(final, plan, encode_state(state), Retention(1))
    mine = (save.size_bytes, shutil.disk_usage(directory).free) if rank_in(None) == 0 else (0, 0)
    size_bytes, free_bytes = broadcast_object(mine, None)
    return SaveEstimate(str(directory), size_bytes, free_bytes, write_s)


def estimate_local(saver: BackgroundSaver, directory: Path, *, state: dict[str, object], step: int) -> SaveEstimate:
    """Size and free space of the local tier, on the disk with the least space left. Collective.

    Ranks of a node may share a disk, or the node's memory: the size is that of all ranks that write there.
    """
    save = Save(directory / step_name(step), saver.plan(directory), encode_state(state), Retention(1))
    disk = (socket.gethostname(), os.stat(directory).st_dev)
    mine = (disk, save.size_bytes, shutil.disk_usage(directory).free)
    return combine(mine, lambda everyone: _fullest_disk(everyone, directory), None)


def _fullest_disk(everyone: list[tuple[tuple[str, int], int, int]], directory: Path) -> SaveEstimate:
    """The estimate of the disk with the least space left, from each rank's disk, size and free space."""
    found: dict[tuple[str, int], tuple[int, int]] = {}
    for disk, size, free in everyone:
        total, least = found.get(disk, (0, free))
        found[disk] = total + size, min(least, free)
    estimates = [
        SaveEstimate(f"{host}:{directory}", size, free, write_s=None) for (host, _), (size, free) in found.items()
    ]
    return min(estimates, key=lambda one: (one.free_bytes - one.size_bytes, one.where))


def _trial_write_s(plan: WritePlan, final: Path) -> float:
    """Seconds that the slowest rank needs to write its shard, extrapolated from a trial of all ranks at once."""
    is_first = rank_in(None) == 0
    hidden = run_on_all_ranks(lambda: make_hidden(final) if is_first else None, None, path=final.parent)
    assert hidden is not None
    shard_bytes = sum(piece.size_bytes for piece in plan.pieces)
    trial_bytes = min(shard_bytes, _TRIAL_BYTES)

    def write_trial() -> float:
        started_at = time.perf_counter()
        write_file(hidden / f"trial-{rank_in(None)}", [bytes(trial_bytes)])
        return (time.perf_counter() - started_at) * shard_bytes / max(trial_bytes, 1)

    try:
        return gather_scatter(write_trial, lambda spans_s: [max(spans_s)] * len(spans_s), None, path=final.parent)
    finally:
        if is_first:
            shutil.rmtree(hidden, ignore_errors=True)
