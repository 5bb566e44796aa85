"""What a checkpoint will need, told before the first one: its size to the byte, its time by a trial; saves nothing."""

import os
import shutil
import socket
import time
from pathlib import Path

from gpt.training.config import Retention
from gpt.training.engine import SaveEstimate
from parallel.agreement import exchange, rank_in, together
from parallel.checkpoint.background import BackgroundSaver
from parallel.checkpoint.files import write_file
from parallel.checkpoint.folders import make_hidden, step_name
from parallel.checkpoint.manifest import encode_state
from parallel.checkpoint.save import Save

_TRIAL_BYTES = 32 * 2**20  # of each rank, at most


def estimate_shared(saver: BackgroundSaver, directory: Path, *, state: dict[str, object], step: int) -> SaveEstimate:
    """Size, time and room of `checkpoint.save` there; all ranks write a little at once, and remove it.

    Collective. CheckpointError on all ranks when the directory cannot be written to, or a trial does not fit.
    """
    directory = Path(directory)
    plan = saver.plan(directory)
    is_first = rank_in(None) == 0
    hidden = together(lambda: make_hidden(directory / step_name(step)) if is_first else None, None, path=directory)[0]
    assert hidden is not None
    share_bytes = sum(piece.size_bytes for piece in plan.pieces)
    trial_bytes = min(share_bytes, _TRIAL_BYTES)

    def write_trial() -> float:
        began_at = time.perf_counter()
        write_file(hidden / f"trial-{rank_in(None)}", [bytes(trial_bytes)])
        return time.perf_counter() - began_at

    try:
        spans_s = together(write_trial, None, path=directory)
    finally:
        if is_first:
            shutil.rmtree(hidden, ignore_errors=True)
    shares = exchange((share_bytes, trial_bytes), None)
    write_s = max(span * share / max(trial, 1) for span, (share, trial) in zip(spans_s, shares, strict=True))
    save = Save(directory / step_name(step), plan, encode_state(state), Retention(1))
    size_bytes, free_bytes = exchange(
        (save.size_bytes, shutil.disk_usage(directory).free) if is_first else (0, 0), None
    )[0]
    return SaveEstimate(str(directory), size_bytes, free_bytes, write_s)


def estimate_local(saver: BackgroundSaver, directory: Path, *, state: dict[str, object], step: int) -> SaveEstimate:
    """Size and free space of the local tier, on the disk where it is tightest. Collective.

    Ranks of a node may share a disk, or the node's memory: the size is that of all ranks that write there.
    """
    plan = saver.plan(directory)
    size_bytes = Save(directory / step_name(step), plan, encode_state(state), Retention(1)).size_bytes
    disk = (socket.gethostname(), os.stat(directory).st_dev)
    everyone = exchange((disk, size_bytes, shutil.disk_usage(directory).free), None)
    found = []
    for host, device in {theirs for theirs, _, _ in everyone}:
        here = [(size, free) for theirs, size, free in everyone if theirs == (host, device)]
        size_bytes, free_bytes = sum(size for size, _ in here), min(free for _, free in here)
        found.append(SaveEstimate(f"{host}:{directory}", size_bytes, free_bytes, write_s=None))
    return min(found, key=lambda one: (one.free_bytes - one.size_bytes, one.where))
