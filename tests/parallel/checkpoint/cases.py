"""Small tensors, comparison bit for bit, damage, and processes that run a job.

Tests use it as the fixture `cases`; the programs that they launch (*_jobs.py) import it.
"""

import os
import random
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.training.config import Retention
from parallel.checkpoint.files import write_file
from parallel.checkpoint.find import find_latest
from parallel.checkpoint.folders import list_checkpoints
from parallel.checkpoint.handle import verify_checkpoint
from parallel.checkpoint.load import load_checkpoint
from parallel.checkpoint.manifest import MANIFEST, encode_manifest, read_manifest
from parallel.checkpoint.save import save_checkpoint

FOLDER = Path(__file__).parent
JOB_TIMEOUT_S = 150
SHAPES = [("w", (40, 5), torch.float32), ("b", (7,), torch.bfloat16)]


def some_tensors(value: float) -> dict[str, torch.Tensor]:
    return {name: torch.full(shape, value, dtype=dtype) for name, shape, dtype in SHAPES}


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Bit for bit."""
    bits = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (left, right)]
    return left.shape == right.shape and left.dtype == right.dtype and torch.equal(*bits)


def loaded(path: Path, value: float) -> bool:
    """Whether a checkpoint contains `some_tensors(value)`."""
    target = some_tensors(-1.0)
    load_checkpoint(verify_checkpoint(path), tensors=target, complete=True)
    return all(same(target[name], tensor) for name, tensor in some_tensors(value).items())


def save_value(directory: Path, step: int, value: int, *, keep_last: int = 1) -> Path:
    """Save `some_tensors(value)`, with the value in the state."""
    return save_checkpoint(
        directory, step=step, tensors=some_tensors(value), state={"value": value}, keep=Retention(keep_last)
    )


def check_whole(directory: Path) -> int:
    """Check that every published checkpoint is whole and not a mixture; return the value in the newest one."""
    for path in list_checkpoints(directory):
        verify_checkpoint(path)
    latest, skipped = find_latest(directory)
    assert latest is not None
    assert not skipped
    value = int(latest.state["value"])
    assert loaded(latest.path, value), "a mixture"
    return value


def newest(directory: Path, **options: Any) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The result of `find_latest`, with the path of the checkpoint."""
    found, skipped = find_latest(directory, **options)
    return None if found is None else found.path, skipped


def fails(kind: type[Exception], action: Callable[[], object]) -> str:
    """Check that an action fails; return the message, which must be one line."""
    with pytest.raises(kind) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


def flip_bit(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << random.Random(position).randrange(8)
    path.write_bytes(data)


def replace_file(path: Path, name: str, data: bytes) -> None:
    """Replace the content of a file and make the manifest match it, as an attacker would."""
    manifest = read_manifest(path)
    (path / name).unlink()
    files = {**manifest.files, name: write_file(path / name, [data])}
    (path / MANIFEST).write_bytes(encode_manifest(replace(manifest, files=files)))


def fork(work: Callable[[], int]) -> int:
    """Fork a process that exits with the code that `work` returns, 1 after an error."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """Wait for a forked process; return its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, at most two minutes."""
    give_up_at = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.002)


def trace(child: int, inject: str, log: Path) -> "subprocess.Popen[bytes]":
    """Attach strace to a process and all its threads, to inject faults into its system calls."""
    call = inject.partition(":")[0]
    words = ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={call}", "-e", f"inject={inject}", "-p", str(child)]
    return subprocess.Popen(words)


def tracer_check() -> Callable[[], bool]:
    """Return a function that tells whether strace is attached, without a system call that strace counts."""
    status = os.open("/proc/self/status", os.O_RDONLY)
    return lambda: b"TracerPid:\t0\n" not in os.pread(status, 4096, 0)


def run_job(
    program: str, job: str, folder: Path, ranks: int = 1, *, timeout_s: float = JOB_TIMEOUT_S, **environment: str
) -> list[int]:
    """Run a job of <program>_jobs.py in `ranks` processes; return their exit codes. All are killed at the timeout."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER.parents[2]), **environment}
    command = [sys.executable, str(FOLDER / f"{program}_jobs.py"), job, str(folder)]
    started = [subprocess.Popen([*command, str(rank), str(ranks)], env=env) for rank in range(ranks)]
    try:
        return [process.wait(timeout=timeout_s) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()


def run_main(jobs: dict[str, Callable[[Path, int], None]]) -> None:
    """The main function of such a program: JOB FOLDER RANK RANKS. It exits without waiting for a killed rank."""
    job, folder, rank, ranks = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    if ranks > 1:
        import torch.distributed as dist

        meeting = f"file://{folder / f'meeting-{job}'}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    jobs[job](folder, rank)
    sys.stdout.flush()
    os._exit(0)  # gloo's destructors would wait for a killed rank
