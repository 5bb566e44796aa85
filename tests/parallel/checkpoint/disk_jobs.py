"""Save to a disk that fills up or fails: a program of test_disk.py.

python disk_jobs.py JOB FOLDER RANK RANKS
"""

import errno
import json
import os
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path

import torch
from cases import (
    check_whole,
    ended,
    fork,
    loaded,
    run_main,
    save_value,
    some_tensors,
    trace,
    tracer_check,
    wait_until,
)

from gpt.training.config import Retention
from parallel.checkpoint.background import BackgroundSaver, BackgroundWriter
from parallel.checkpoint.folders import list_checkpoints
from parallel.checkpoint.save import save_checkpoint
from parallel.errors import CheckpointError

FAULTS = {  # errors that a disk may return for each call that touches files
    "mkdir": ("ENOSPC", "EIO"),
    "openat": ("ENOSPC", "EIO", "EMFILE"),
    "write": ("ENOSPC", "EIO", "EDQUOT"),
    "fsync": ("ENOSPC", "EIO"),
    "rename": ("ENOSPC", "EIO"),
    "unlinkat": ("EIO",),
    "rmdir": ("EIO",),
}
CPU = torch.device("cpu")


def save(kind: str, directory: Path, step: int, tensors: dict[str, torch.Tensor], *, keep_last: int = 1) -> str | None:
    """Save and wait; return None, or the error."""
    state: dict[str, object] = {"value": step}
    if kind == "waiting":
        try:
            save_checkpoint(directory, step=step, tensors=tensors, state=state, keep=Retention(keep_last))
        except CheckpointError as error:
            return str(error)
        return None
    saver = BackgroundSaver(lambda: tensors, BackgroundWriter(CPU))
    saver.start(directory, step=step, state=state, keep=Retention(keep_last))
    (result,) = saver.finished(wait=True)
    return result.error


def job_full(folder: Path, rank: int) -> None:
    """`folder` is a file system of 8 MiB: one save is too large, and during another one a program fills the disk."""
    for kind in ("waiting", "background"):
        directory = folder / kind
        assert save(kind, directory, 1, some_tensors(1.0), keep_last=3) is None
        message = save(kind, directory, 2, {"w": torch.ones(4_000_000)})
        assert message is not None
        assert "not enough room" in message
        assert "needs 16000000 bytes" in message
        assert os.listdir(directory) == ["step-000000001"]
        _fill_while_saving(folder, kind, directory)
        shutil.rmtree(directory)


def _fill_while_saving(folder: Path, kind: str, directory: Path) -> None:
    filler = folder / "filler"
    is_armed = True

    def fill(event: str, args: tuple[object, ...]) -> None:
        nonlocal is_armed
        if is_armed and event == "open" and str(args[0]).endswith("shard-00000.safetensors"):
            is_armed = False
            with open(filler, "wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    file.truncate(file.tell() - 500_000)

    sys.addaudithook(fill)
    medium = {"w": torch.ones(500_000)}
    message = save(kind, directory, 2, medium, keep_last=3)
    assert not is_armed
    assert message is not None
    assert "No space left on device" in message
    assert f"needs 2000000 bytes and {shutil.disk_usage(folder).free} bytes are free in {directory}" in message
    assert os.listdir(directory) == ["step-000000001"]
    assert loaded(directory / "step-000000001", 1.0)
    filler.unlink()
    assert save(kind, directory, 2, medium, keep_last=3) is None
    assert len(list_checkpoints(directory)) == 2


def job_errors(folder: Path, rank: int) -> None:
    """Let the n-th call of each kind fail in a save, for n = 1, 1 + STRIDE, ...

    The error is reported, nothing is lost, and the next save succeeds.
    """
    stride, reported, unnoticed = int(os.environ["STRIDE"]), Counter[str](), 0
    for kind in ("waiting", "background"):
        save(kind, folder / "warm", 1, some_tensors(1.0))  # so that later saves import nothing
        for call, names in FAULTS.items():
            for name in names:
                for n in range(1, 1000, stride):
                    directory = folder / "run"
                    shutil.rmtree(directory, ignore_errors=True)
                    save_value(directory, 1, 1)
                    case = f"{kind} {call} {name} {n}"
                    failed, injected = _save_with_fault(folder, kind, directory, f"{call}:error={name}:when={n}")
                    assert check_whole(directory) == 3, case
                    assert os.listdir(directory) == ["step-000000003"], case
                    if not injected:
                        assert not failed, case
                        break
                    reported[f"{call} {name}"] += failed
                    unnoticed += not failed  # the fault hit the deletion of a file that is no longer needed
    (folder / "errors.json").write_text(json.dumps({"failed saves": reported, "saved all the same": unnoticed}))


def _save_with_fault(folder: Path, kind: str, directory: Path, inject: str) -> tuple[bool, bool]:
    """Save step 2 in a forked process while strace lets one call fail, then step 3 without a fault.

    Return whether the first save failed, and whether a fault was injected.
    """
    ready, log = folder / "ready", folder / "log"
    for path in (ready, log):
        path.unlink(missing_ok=True)
    reason = os.strerror(getattr(errno, inject.split(":")[1].removeprefix("error=")))

    def work() -> int:
        is_traced = tracer_check()
        ready.touch()
        wait_until(is_traced)
        message = save(kind, directory, 2, some_tensors(2.0))
        os.utime(ready, (1, 1))
        wait_until(lambda: not is_traced())
        value = check_whole(directory)
        if message is None:
            assert value == 2
        else:
            assert value == 1
            for part in ("step-000000002", "not saved", reason, "needs", "bytes are free in", "untouched"):
                assert part in message, message
        assert save(kind, directory, 3, some_tensors(3.0)) is None
        return 0 if message is None else 3

    child = fork(work)
    wait_until(ready.exists)
    tracer = trace(child, inject, log)
    wait_until(lambda: ready.stat().st_mtime == 1 or tracer.poll() is not None)
    tracer.send_signal(signal.SIGTERM)  # strace detaches
    tracer.wait()
    code = ended(child)
    assert code in (0, 3), (inject, code)
    return code == 3, "INJECTED" in log.read_text()


if __name__ == "__main__":
    run_main({"full": job_full, "errors": job_errors})
