"""Saves beside training and the second tier, on real gloo processes and with real SIGKILLs; as a script: one job.

python test_checkpoint_background.py JOB FOLDER RANK RANKS
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from gpt.checkpoint_config import Retention
from gpt.engine import SaveResult
from parallel import checkpoint, checkpoint_fast
from parallel.checkpoint_background import BackgroundSaver
from parallel.checkpoint_ranks import ALONE, exchange

CPU = torch.device("cpu")
JOB_TIMEOUT_S = 120
LAYOUT = {"tensor": 2, "split": [1, 1]}


# What the jobs share


def trained() -> dict[str, torch.Tensor]:
    """Parameters and moments on tensor parallel 2 x FSDP 2; what stages hold, and what ranks hold twice."""
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
        checkpoint_fast.local(tensor).add_(value)


def elements(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: checkpoint_fast.local(tensor).clone() for name, tensor in tensors.items()}


def equal(tensors: dict[str, torch.Tensor], kept: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(checkpoint_fast.local(tensor), kept[name]) for name, tensor in tensors.items())


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def only(results: list[SaveResult]) -> SaveResult:
    """The one result, which all ranks must have alike."""
    assert len(results) == 1
    everyone = exchange(results[0], None) if dist.is_initialized() else results
    assert all(theirs == results[0] for theirs in everyone)
    return results[0]


# Jobs of four ranks


def job_four(folder: Path, rank: int) -> None:
    tensors = trained()
    saver = BackgroundSaver(lambda: tensors, device=CPU)
    _same_bytes(folder, tensors, saver)
    _one_at_a_time(folder, tensors, saver)
    _one_rank_fails(folder, saver, rank)
    _fast_tier(folder, tensors, saver, rank)
    _one_rank_dies(folder, saver, rank)


def _same_bytes(folder: Path, tensors: dict[str, torch.Tensor], saver: BackgroundSaver) -> None:
    """What is saved is what was there at the start, though training goes on; to the byte as by a save that waits."""
    kept = elements(tensors)
    waiting = checkpoint.save(folder / "waiting", step=10, tensors=tensors, state={"a": 1}, keep=Retention(2))
    plan = saver.prepare(folder / "run")
    stall_s = saver.start(folder / "run", step=10, state={"a": 1}, keep=Retention(2))
    add(tensors, 1.0)
    total = torch.ones(1)
    for _ in range(200):  # training's messages, while the thread sends its own
        dist.all_reduce(total)
        total /= 4
    result = only(saver.finished(wait=True))
    assert result.error is None
    assert result.stall_s >= stall_s > 0
    assert saver.finished(wait=True) == []
    assert contents(result.path) == contents(waiting)
    assert result.bytes == sum(map(len, contents(waiting).values())), "known before the first byte"
    assert saver.prepare(folder / "run") is plan
    checkpoint.load(result.path, tensors=tensors, complete=True)
    assert equal(tensors, kept)
    dist.barrier()


def _one_at_a_time(folder: Path, tensors: dict[str, torch.Tensor], saver: BackgroundSaver) -> None:
    """A second save waits for the first. Ended ones are told in passing, and on all ranks after the same step."""
    for step in (20, 30):
        add(tensors, 1.0)
        saver.start(folder / "run", step=step, state={"a": step}, keep=Retention(2, lambda step: step == 10))
    assert only(saver.finished(wait=False)).step == 20
    told, asked = saver.finished(wait=False), 0
    while not told:
        time.sleep(0.001 * (1 + dist.get_rank()))
        told, asked = saver.finished(wait=False), asked + 1
    assert only(told).step == 30
    assert len(set(exchange(asked, None))) == 1
    assert sorted(os.listdir(folder / "run")) == ["step-000000010", "step-000000020", "step-000000030"]
    dist.barrier()


def _one_rank_fails(folder: Path, saver: BackgroundSaver, rank: int) -> None:
    """The disk refuses rank 2: every rank hears of it in the same words, and the next save works."""
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


def _fast_tier(folder: Path, tensors: dict[str, torch.Tensor], saver: BackgroundSaver, rank: int) -> None:
    directory = folder / "fast" / "run-12345678"
    mine = checkpoint_fast.rank_directory(directory)

    def save(step: int, save_id: str) -> dict[str, torch.Tensor]:
        add(tensors, 1.0)
        state = checkpoint_fast.marked({"step": step, "run_id": "r"}, save_id=save_id, layout=LAYOUT)
        saver.start(mine, step=step, state=state, keep=Retention(2), each_its_own=True)
        (result,) = saver.finished(wait=True)
        assert result.error is None
        assert result.bytes == sum(file.stat().st_size for file in directory.glob(f"*/step-*{step}/*"))
        dist.barrier()
        return elements(tensors)

    def newest(run_id: str = "r", layout: dict[str, object] = LAYOUT) -> tuple[int | None, str]:
        found, messages = checkpoint_fast.find_newest(directory, run_id=run_id, layout=layout)
        assert exchange(messages, None) == [messages] * 4
        return found and found.step, " ".join(messages)

    save(1, "x-0")
    kept = save(2, "x-1")
    assert sorted(os.listdir(mine)) == ["step-000000001", "step-000000002"]
    found, messages = checkpoint_fast.find_newest(directory, run_id="r", layout=LAYOUT)
    assert (found.step, found.path, messages) == (2, mine / "step-000000002", [])
    add(tensors, 1.0)
    checkpoint_fast.load(found.path, tensors)
    assert equal(tensors, kept)
    assert newest(run_id="other") == (
        None,
        f"skipped {directory}/rank-00000/step-000000002: it is of another run (and 7 more)",
    )
    assert "another layout (tensor 2 then, 4 now)" in newest(layout={**LAYOUT, "tensor": 4})[1]
    save(3, "x-2")
    if rank == 1:  # as after a kill between the publications of two ranks
        shutil.rmtree(mine / "step-000000003")
    dist.barrier()
    assert newest() == (2, f"skipped step 3 of {directory}: rank 1 does not hold it")
    save(3, f"y-{rank // 3}")  # ranks of different saves of one step
    assert newest() == (2, f"skipped step 3 of {directory}: the ranks' folders are of different saves")
    checkpoint_fast.discard_after(directory, step=2)
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
    checkpoint_fast.discard_all(directory)
    dist.barrier()
    assert not directory.exists()


def _one_rank_dies(folder: Path, saver: BackgroundSaver, rank: int) -> None:
    """The survivors' threads end by themselves, and training hears of it at its next message."""
    if rank == 3:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    saver.start(folder / "run", step=50, state={}, keep=Retention(1))
    with pytest.raises(RuntimeError):
        saver.finished(wait=True)
    assert checkpoint.verify(folder / "run" / "step-000000040", group=ALONE) is None


# Kills


def small(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((40, 5), value), "b": torch.full((7,), value, dtype=torch.float64)}


def job_kill(folder: Path, rank: int) -> None:
    """SIGKILL a process before each `stride`-th file operation of a save in its background."""
    stride = int(os.environ["STRIDE"])
    moment = 0
    for case, step in (("next step", 2), ("same step", 1)):
        directory = folder / case
        for moment in range(1, 1000, stride):
            shutil.rmtree(directory, ignore_errors=True)
            checkpoint.save(directory, step=1, tensors=small(1.0), state={"value": 1}, keep=Retention(1))
            finished = _save_in_child(directory, step, kill_at=moment)
            assert check_whole(directory) >= (2 if finished else 1), (case, moment)
            if finished:
                break
    (folder / "moments.json").write_text(json.dumps(moment))


def check_whole(directory: Path) -> int:
    """Whatever is published is whole, and one checkpoint is; the value that the newest holds."""
    for path in checkpoint.list_checkpoints(directory):
        assert checkpoint.verify(path) is None, path
    latest, skipped = checkpoint.find_latest(directory)
    assert latest is not None
    assert not skipped
    value = int(checkpoint.read_state(latest)["value"])
    target = small(-1.0)
    checkpoint.load(latest, tensors=target, complete=True)
    assert all(bool((tensor == value).all()) for tensor in target.values()), "a mixture"
    return value


def _save_in_child(directory: Path, step: int, *, kill_at: int) -> bool:
    """Save in the background of a forked process, which gets SIGKILL before its `kill_at`-th file operation."""
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL), status
        return status == 0
    left = kill_at

    def count(event: str, args: tuple[object, ...]) -> None:
        nonlocal left
        ours = args and str(args[0]).startswith(str(directory))
        if event in ("os.fsync", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "open", "shutil.rmtree") and ours:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:  # Python raises no audit event for it
        count("os.fsync", (directory,))
        real_fsync(descriptor)
        count("os.fsync", (directory,))

    os.fsync = fsync
    sys.addaudithook(count)
    saver = BackgroundSaver(lambda: small(2.0), device=CPU)
    saver.start(directory, step=step, state={"value": 2}, keep=Retention(1))
    os._exit(0 if saver.finished(wait=True)[0].error is None else 3)


def job_random_kills(folder: Path, rank: int) -> None:
    """SIGKILL to one or both of two saving ranks at random moments; whole checkpoints are all that is ever found."""
    kills, rng = int(os.environ["KILLS"]), random.Random(7)
    survived_alone, newest = 0, {"waiting": 0, "background": 0}
    for kill in range(kills):
        kind = ("waiting", "background")[kill % 2]
        directory = folder / kind
        children = [_save_for_ever(folder, directory, rank, kill=kill, start=newest[kind] + 1) for rank in range(2)]
        meeting = time.monotonic()
        while not (folder / f"begun-{kill}").exists():
            assert time.monotonic() < meeting + 60
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.12))
        doomed = rng.choice([[0], [1], [0, 1]])
        for rank in doomed:
            os.kill(children[rank], signal.SIGKILL)
        for rank, child in enumerate(children):
            status = os.waitpid(child, 0)[1]
            assert status == signal.SIGKILL if rank in doomed else os.waitstatus_to_exitcode(status) == 5, status
            survived_alone += rank not in doomed
        value = check_whole(directory)
        assert value >= newest[kind], "a published checkpoint was lost"
        newest[kind] = value
    (folder / "kills.json").write_text(json.dumps({"kills": kills, "survived_alone": survived_alone, "newest": newest}))


def _save_for_ever(folder: Path, directory: Path, rank: int, *, kill: int, start: int) -> int:
    """A forked rank of two that saves step after step, keeping one; it ends with 5 when the other is lost."""
    child = os.fork()
    if child:
        return child
    dist.init_process_group("gloo", init_method=f"file://{folder / f'meet-{kill}'}", rank=rank, world_size=2)
    value = float(start - 1)
    saver = BackgroundSaver(lambda: small(value), device=CPU)
    try:
        for step in range(start, 1_000_000):
            value = float(step)
            arguments = {"step": step, "state": {"value": step}, "keep": Retention(1)}
            if directory.name == "background":
                saver.start(directory, **arguments)
                saver.finished(wait=False)
            else:
                checkpoint.save(directory, tensors=small(value), **arguments)
            if step > start or (directory / "step-000000001").exists():
                (folder / f"begun-{kill}").touch()
    except (RuntimeError, checkpoint.CheckpointError):
        os._exit(5)
    os._exit(0)


# Tests


def run_ranks(job: str, folder: Path, ranks: int, **environment: str) -> list[int]:
    """Run a job of this file in `ranks` processes; their exit codes. All die with the time-out."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2]), **environment}
    command = [sys.executable, __file__, job, str(folder)]
    started = [subprocess.Popen([*command, str(rank), str(ranks)], env=env) for rank in range(ranks)]
    try:
        return [process.wait(timeout=JOB_TIMEOUT_S if "rehearse" not in environment else 3000) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_four_ranks(tmp_path: Path) -> None:
    assert run_ranks("four", tmp_path, 4) == [0, 0, 0, -signal.SIGKILL]


def test_killed_in_the_background(tmp_path: Path) -> None:
    assert run_ranks("kill", tmp_path, 1, STRIDE="5") == [0]
    assert json.loads((tmp_path / "moments.json").read_text()) > 20


def test_killed_at_random_moments(tmp_path: Path) -> None:
    assert run_ranks("random_kills", tmp_path, 1, KILLS="8") == [0]


@pytest.mark.rehearse
def test_killed_in_the_background_at_every_file_operation(tmp_path: Path) -> None:
    assert run_ranks("kill", tmp_path, 1, STRIDE="1") == [0]


@pytest.mark.rehearse
@pytest.mark.timeout(3600)
def test_killed_at_200_random_moments(tmp_path: Path) -> None:
    assert run_ranks("random_kills", tmp_path, 1, KILLS="400", rehearse="yes") == [0]
    print((tmp_path / "kills.json").read_text())


def main() -> None:
    job, folder, rank, ranks = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    if ranks > 1:
        meeting = f"file://{folder / f'meeting-{job}'}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    {"four": job_four, "kill": job_kill, "random_kills": job_random_kills}[job](folder, rank)
    os._exit(0)  # not by way of gloo's destructors, which wait for a rank that was killed


if __name__ == "__main__":
    main()
