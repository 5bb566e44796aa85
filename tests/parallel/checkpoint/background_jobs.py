"""Background saves of four gloo ranks, shared and node-local: a program of test_background.py.

python background_jobs.py JOB FOLDER RANK RANKS
"""

import os
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from cases import run_main
from torch import nn

from gpt.training.config import Retention
from gpt.training.engine import SaveResult
from parallel.agreement import ALONE, combine
from parallel.checkpoint.background import BackgroundSaver, BackgroundWriter
from parallel.checkpoint.handle import verify_checkpoint
from parallel.checkpoint.load import load_checkpoint
from parallel.checkpoint.local_tier import (
    discard_all_local,
    discard_local_after,
    find_newest_local,
    load_local,
    mark,
    rank_directory,
)
from parallel.checkpoint.plan import local, make_rank_plan
from parallel.checkpoint.save import save_checkpoint

CPU = torch.device("cpu")
LAYOUT = {"tensor": 2, "split": [1, 1]}


def trained() -> dict[str, torch.Tensor]:
    """Tensors on tensor parallel 2 x FSDP 2, tensors of one stage only, and replicated ones."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    torch.manual_seed(1)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    net = nn.Sequential(nn.Linear(12, 16), nn.LayerNorm(16))
    parallelize_module(net, mesh["tp"], {"0": ColwiseParallel(use_local_output=False)})
    fully_shard(net, mesh=mesh["dp"])
    tensors: dict[str, torch.Tensor] = {f"model.{name}": p for name, p in net.named_parameters()}
    rank = dist.get_rank()
    tensors[f"stage{rank}.w"] = torch.full((300, 3), float(rank))
    tensors["replica"] = torch.randn(1000)
    tensors["half"] = torch.randn(7).bfloat16()
    tensors["step"] = torch.tensor(5.0)
    return tensors


@torch.no_grad()
def add(tensors: dict[str, torch.Tensor], value: float) -> None:
    for tensor in tensors.values():
        local(tensor).add_(value)


def elements(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: local(tensor).clone() for name, tensor in tensors.items()}


def equal(tensors: dict[str, torch.Tensor], kept: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(local(tensor), kept[name]) for name, tensor in tensors.items())


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def only(results: list[SaveResult]) -> SaveResult:
    """The only result, which must be the same on all ranks."""
    assert len(results) == 1
    everyone = combine(results[0], list, None) if dist.is_initialized() else results
    assert all(theirs == results[0] for theirs in everyone)
    return results[0]


def job_four(folder: Path, rank: int) -> None:
    tensors = trained()
    writer = BackgroundWriter(CPU)
    saver = BackgroundSaver(lambda: tensors, writer)
    _same_bytes(folder, tensors, saver)
    _one_at_a_time(folder, tensors, saver)
    _one_rank_fails(folder, saver, rank)
    _local_tier(folder, tensors, BackgroundSaver(lambda: tensors, writer, make_plan=make_rank_plan), rank)
    _two_savers(folder, tensors, saver, writer)
    _one_rank_dies(folder, saver, rank)


def _same_bytes(folder: Path, tensors: dict[str, torch.Tensor], saver: BackgroundSaver) -> None:
    """A save contains the tensors of its start, although training continues. Its files equal a blocking save's."""
    kept = elements(tensors)
    waiting = save_checkpoint(folder / "waiting", step=10, tensors=tensors, state={"a": 1}, keep=Retention(2))
    plan = saver.prepare(folder / "run")
    stall_s = saver.start(folder / "run", step=10, state={"a": 1}, keep=Retention(2))
    add(tensors, 1.0)
    total = torch.ones(1)
    for _ in range(200):  # collectives of training, while the thread runs its own
        dist.all_reduce(total)
        total /= 4
    result = only(saver.finished(wait=True))
    assert result.error is None
    assert result.stall_s >= stall_s > 0
    assert saver.finished(wait=True) == []
    assert contents(result.path) == contents(waiting)
    assert result.bytes == sum(map(len, contents(waiting).values())), "known before the first byte"
    assert saver.prepare(folder / "run") is plan
    load_checkpoint(verify_checkpoint(result.path), tensors=tensors, complete=True)
    assert equal(tensors, kept)
    dist.barrier()


def _one_at_a_time(folder: Path, tensors: dict[str, torch.Tensor], saver: BackgroundSaver) -> None:
    """A second save waits for the first. All ranks see a finished save at the same call."""
    for step in (20, 30):
        add(tensors, 1.0)
        saver.start(folder / "run", step=step, state={"a": step}, keep=Retention(2, lambda step: step == 10))
    assert only(saver.finished(wait=False)).step == 20
    done, asked = saver.finished(wait=False), 0
    while not done:
        time.sleep(0.001 * (1 + dist.get_rank()))
        done, asked = saver.finished(wait=False), asked + 1
    assert only(done).step == 30
    assert len(set(combine(asked, list, None))) == 1
    assert sorted(os.listdir(folder / "run")) == ["step-000000010", "step-000000020", "step-000000030"]
    dist.barrier()


def _one_rank_fails(folder: Path, saver: BackgroundSaver, rank: int) -> None:
    """The disk refuses rank 2: all ranks get the same error, and the next save works."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    saver.start(folder / "run", step=40, state={}, keep=Retention(1))
    result = only(saver.finished(wait=True))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.path is None
    for part in ("step-000000040: not saved", "File too large on rank 2", "it needs", "bytes are free in", "untouched"):
        assert part in result.error
    assert sorted(os.listdir(folder / "run")) == ["step-000000010", "step-000000020", "step-000000030"]
    dist.barrier()
    saver.start(folder / "run", step=40, state={}, keep=Retention(1))
    assert only(saver.finished(wait=True)).error is None
    assert os.listdir(folder / "run") == ["step-000000040"]


def _local_tier(folder: Path, tensors: dict[str, torch.Tensor], saver: BackgroundSaver, rank: int) -> None:
    directory = folder / "local" / "run-12345678"
    mine = rank_directory(directory)
    directory.mkdir(parents=True, exist_ok=True)

    def save(step: int, save_id: str) -> dict[str, torch.Tensor]:
        add(tensors, 1.0)
        state = mark({"step": step, "run_id": "r"}, save_id=save_id, layout=LAYOUT)
        saver.start(mine, step=step, state=state, keep=Retention(2))
        (result,) = saver.finished(wait=True)
        assert result.error is None
        assert result.bytes == sum(file.stat().st_size for file in directory.glob(f"*/step-*{step}/*"))
        dist.barrier()
        return elements(tensors)

    def newest(run_id: str = "r", layout: dict[str, object] = LAYOUT) -> tuple[int | None, str]:
        found, messages, _ = find_newest_local(directory, run_id=run_id, layout=layout)
        assert combine(messages, list, None) == [messages] * 4
        return found and found.step, " ".join(messages)

    save(1, "x-0")
    kept = save(2, "x-1")
    assert sorted(os.listdir(mine)) == ["step-000000001", "step-000000002"]
    found, messages, _ = find_newest_local(directory, run_id="r", layout=LAYOUT)
    assert (found.step, found.path, messages) == (2, mine / "step-000000002", [])
    add(tensors, 1.0)
    load_local(found, tensors)
    assert equal(tensors, kept)
    assert newest(run_id="other") == (
        None,
        f"skipped {directory}/rank-00000/step-000000002: it is of another run (and 7 more)",
    )
    assert "another layout (tensor 2 then, 4 now)" in newest(layout={**LAYOUT, "tensor": 4})[1]
    save(3, "x-2")
    if rank == 1:  # as after a kill between two ranks' renames
        shutil.rmtree(mine / "step-000000003")
    dist.barrier()
    assert newest() == (2, f"skipped step 3 of {directory}: rank 1 does not hold it")
    save(3, f"y-{rank // 3}")  # ranks of different saves of one step
    assert newest() == (2, f"skipped step 3 of {directory}: the ranks' folders are of different saves")
    discard_local_after(directory, step=2)
    save(4, "z-0")
    if rank == 3:
        shard = mine / "step-000000004" / "shard-00000.safetensors"
        shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    dist.barrier()
    step, said = newest()
    assert step == 2
    assert "step 4" in said
    assert "shard-00000.safetensors is damaged" in said
    if rank == 0:
        shutil.rmtree(mine)
    dist.barrier()
    assert newest() == (
        None,
        " ".join(f"skipped step {step} of {directory}: rank 0 does not hold it" for step in (4, 2)),
    )
    discard_all_local(directory)
    dist.barrier()
    assert not directory.exists()


def _two_savers(
    folder: Path, tensors: dict[str, torch.Tensor], saver: BackgroundSaver, writer: BackgroundWriter
) -> None:
    """A save waits for that of another saver of the same writer; each saver returns its own results."""
    local_saver = BackgroundSaver(lambda: tensors, writer, make_plan=make_rank_plan)
    mine = rank_directory(folder / "local" / "two")
    mine.parent.mkdir(parents=True, exist_ok=True)
    saver.start(folder / "two", step=1, state={}, keep=Retention(1))
    local_saver.start(mine, step=2, state={}, keep=Retention(1))
    assert only(saver.finished(wait=False)).step == 1
    assert saver.finished(wait=True) == []
    (result,) = local_saver.finished(wait=True)
    assert (result.step, result.path, result.error) == (2, mine / "step-000000002", None)
    dist.barrier()


def _one_rank_dies(folder: Path, saver: BackgroundSaver, rank: int) -> None:
    """The threads of the surviving ranks end by themselves; training gets an error at its next collective."""
    if rank == 3:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    saver.start(folder / "run", step=50, state={}, keep=Retention(1))
    with pytest.raises(RuntimeError):
        saver.finished(wait=True)
    verify_checkpoint(folder / "run" / "step-000000040", group=ALONE)


if __name__ == "__main__":
    run_main({"four": job_four})
