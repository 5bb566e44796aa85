"""Checkpoints on real gloo processes, real files and real SIGKILLs; as a script this file is the job of one process.

python test_checkpoint.py JOB FOLDER RANK RANKS
"""

import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

from gpt.checkpoint_config import Retention
from gpt.errors import ConfigError
from parallel import checkpoint
from parallel.checkpoint_files import INDEX, MANIFEST, FileRecord, encode_manifest, read_manifest, write_file

JOB_TIMEOUT_S = 150
LAYOUTS = {
    "dp2tp2": ((2, 2), ("dp", "tp")),
    "tp2": ((2,), ("tp",)),
    "dp4": ((4,), ("dp",)),
    "replicate2shard2": ((2, 2), ("replicate", "shard")),
}
SHAPES = [("w", (40, 5), torch.float32), ("b", (7,), torch.bfloat16)]


# What the jobs and the tests share


class Net(nn.Module):
    """Column- and row-wise parallel layers, a norm, and a head of 5 rows that no number of ranks here divides."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(12, 16)
        self.down = nn.Linear(16, 12)
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 5).bfloat16()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.down(torch.relu(self.up(x)))).bfloat16())


def trained(layout: str, seed: int) -> dict[str, torch.Tensor]:
    """Parameters and AdamW state, by name, of a Net on a layout after one optimizer step."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    torch.manual_seed(seed)
    net = Net()
    if layout != "one":
        mesh = init_device_mesh("cpu", LAYOUTS[layout][0], mesh_dim_names=LAYOUTS[layout][1])
        names = mesh.mesh_dim_names
        if "tp" in names:
            parallelize_module(net, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        if names != ("tp",):
            fsdp_mesh = mesh["dp"] if "tp" in names else mesh
            fully_shard(net.head, mesh=fsdp_mesh)  # its own group: one group has one dtype
            fully_shard(net, mesh=fsdp_mesh)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, foreach=False)
    net(torch.randn(3, 12)).float().square().sum().backward()
    optimizer.step()
    tensors = {}
    for name, parameter in net.named_parameters():
        tensors[f"model.{name}"] = parameter
        tensors |= {f"optimizer.{name}.{key}": value for key, value in optimizer.state[parameter].items()}
    return tensors


def full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Bit for bit."""
    bits = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (left, right)]
    return left.shape == right.shape and left.dtype == right.dtype and torch.equal(*bits)


def some_tensors(value: float) -> dict[str, torch.Tensor]:
    return {name: torch.full(shape, value, dtype=dtype) for name, shape, dtype in SHAPES}


def loaded(path: Path, value: float) -> bool:
    """Whether a checkpoint holds `some_tensors(value)`."""
    target = some_tensors(-1.0)
    checkpoint.load(path, tensors=target, complete=True)
    return all(same(target[name], tensor) for name, tensor in some_tensors(value).items())


def fails(kind: type[Exception], action: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


def run_ranks(job: str, folder: Path, ranks: int) -> list[int]:
    """Run a job of this file in `ranks` processes; their exit codes. All die with the time-out."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, __file__, job, str(folder)]
    started = [subprocess.Popen([*command, str(rank), str(ranks)], env=env) for rank in range(ranks)]
    try:
        return [process.wait(timeout=JOB_TIMEOUT_S) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()


# Jobs


def job_four(folder: Path, rank: int) -> None:
    """Save on 4 ranks, load on other layouts, fail on one rank, and at last lose a rank."""
    directory = folder / "run"
    tensors = trained("dp2tp2", seed=1)
    reference = {name: full(t).detach().clone() for name, t in tensors.items()}
    tensors |= {f"stage{rank}.w": torch.full((4, 3), float(rank))}  # pipeline stages hold different names
    if rank in (0, 3):
        tensors["tied.w"] = torch.arange(1000.0)
    path = checkpoint.save(directory, step=10, tensors=tensors, state={"rank": rank}, keep=Retention(2))
    if rank == 0:
        save_file(reference, folder / "reference.safetensors")
    _load_on_four(path, reference)
    _save_more_layouts(folder, rank)
    _refuse_on_four(directory, path, rank)
    _one_rank_fails(directory, rank)
    _one_rank_dies(directory, rank)


def _load_on_four(path: Path, reference: dict[str, torch.Tensor]) -> None:
    for layout in ("dp2tp2", "dp4", "replicate2shard2"):
        tensors = trained(layout, seed=2)
        assert not all(same(full(t), reference[name]) for name, t in tensors.items())
        checkpoint.load(path, tensors=tensors)
        for name, tensor in tensors.items():
            assert same(full(tensor), reference[name]), (layout, name)


def _save_more_layouts(folder: Path, rank: int) -> None:
    """Replicas, empty and uneven shards, non-contiguous shards, a shard twice along one dimension; and a sub-group."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    line, square = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2))
    torch.manual_seed(3)
    whole = {
        "rows": torch.randn(2, 3),
        "twice": torch.randn(11, 2),
        "both": torch.randn(5, 7),
        "none": torch.ones(0, 4),
    }
    places = {"rows": [Shard(0)], "twice": [Shard(0), Shard(0)], "both": [Shard(0), Shard(1)], "none": [Shard(0)]}
    tensors = {n: distribute_tensor(t, line if len(places[n]) == 1 else square, places[n]) for n, t in whole.items()}
    whole["replica"] = torch.randn(50)
    tensors["replica"] = distribute_tensor(whole["replica"], square, [Replicate(), Replicate()])
    columns = torch.arange(24.0).view(8, 3).t()[:, rank * 2 : rank * 2 + 2]  # (3, 2), strides (1, 3)
    tensors["strides"] = DTensor.from_local(columns, line, [Shard(1)])
    whole["strides"] = torch.arange(24.0).view(8, 3).t()
    path = checkpoint.save(folder / "layouts", step=1, tensors=tensors, state={}, keep=Retention(1))
    target = {name: torch.zeros_like(tensor) for name, tensor in whole.items()}
    checkpoint.load(path, tensors=target, complete=True)
    assert all(same(target[name], whole[name]) for name in whole)

    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    pair = pairs[rank // 2]
    mine = {"w": torch.full((6,), float(rank // 2))}
    path = checkpoint.save(folder / f"pair{rank // 2}", step=1, tensors=mine, state={}, keep=Retention(1), group=pair)
    target = {"w": torch.zeros(6)}
    checkpoint.load(path, tensors=target, group=pair)
    assert same(target["w"], mine["w"])
    assert checkpoint.find_latest(folder / f"pair{rank // 2}", group=pair) == (path, [])
    dist.barrier()


def _refuse_on_four(directory: Path, path: Path, rank: int) -> None:
    """A mistake on one rank is the same one-line error on all, and nothing is touched."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    mesh = init_device_mesh("cpu", (4,))

    def save(tensors: dict[str, torch.Tensor], state: dict[str, object] | None = None) -> str:
        return fails(
            ConfigError,
            lambda: checkpoint.save(directory, step=11, tensors=tensors, state=state or {}, keep=Retention(2)),
        )

    local = torch.zeros(2)
    assert "tensor 'w' is" in save({"w": torch.zeros(4 if rank == 2 else 5)})
    assert "partial sum" in save({"w": DTensor.from_local(local, mesh, [Partial()])})
    strided = DTensor.from_local(local, mesh, [_StridedShard(0, split_factor=2)], shape=torch.Size([8]), stride=(1,))
    assert "not contiguous" in save({"w": strided})
    uneven = DTensor.from_local(local, mesh, [Shard(0)], shape=torch.Size([11]), stride=(1,))
    assert "make it divisible" in save({"w": uneven})
    assert "not JSON" in save({}, {"key": object() if rank == 1 else 1})
    assert "complex64" in save({"w": torch.zeros(2, dtype=torch.complex64 if rank == 3 else torch.float32)})

    target = {"model.norm.weight": torch.zeros(12 if rank else 13)}
    message = fails(ConfigError, lambda: checkpoint.load(path, tensors=target))
    assert "model.norm.weight" in message
    assert "[13]" in message
    assert "[12]" in message
    assert not target["model.norm.weight"].any()
    assert os.listdir(directory) == ["step-000000010"]
    dist.barrier()


def _one_rank_fails(directory: Path, rank: int) -> None:
    """The disk refuses rank 2 in the middle of its file: all give up; when it recovers, the next save works."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    tensors = {f"stage{rank}.w": torch.ones(100_000)}
    message = fails(
        checkpoint.CheckpointError,
        lambda: checkpoint.save(directory, step=12, tensors=tensors, state={}, keep=Retention(1)),
    )
    assert "File too large on rank 2" in message
    assert "needs 1600000 bytes" in message
    assert "step-000000012" in message
    assert "are free" in message
    assert os.listdir(directory) == ["step-000000010"]
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    path = checkpoint.save(directory, step=12, tensors=tensors, state={}, keep=Retention(2))
    shard = path / "shard-00003.safetensors"
    if rank == 0:
        flip_bit(shard, shard.stat().st_size // 2)
    dist.barrier()
    latest, skipped = checkpoint.find_latest(directory)
    assert latest == directory / "step-000000010"
    assert [p for p, _ in skipped] == [path]
    assert "shard-00003.safetensors" in skipped[0][1]
    assert "shard-00003" in fails(checkpoint.CheckpointError, lambda: checkpoint.load(path, tensors=tensors))


def _one_rank_dies(directory: Path, rank: int) -> None:
    if rank == 3:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # its file is written by now, but not complete
    tensors = {f"stage{rank}.w": torch.ones(1000)}
    message = fails(
        checkpoint.CheckpointError,
        lambda: checkpoint.save(directory, step=13, tensors=tensors, state={}, keep=Retention(1)),
    )
    assert "another rank died" in message
    assert "untouched" in message


def job_two(folder: Path, rank: int) -> None:
    """Load the 4 ranks' checkpoint on tensor parallel 2."""
    directory = folder / "run"
    path, skipped = checkpoint.find_latest(directory)
    assert path == directory / "step-000000010"
    assert [p.name for p, _ in skipped] == ["step-000000012"]
    tensors = trained("tp2", seed=4) | {f"stage{stage}.w": torch.zeros(4, 3) for stage in (rank, 2 + rank)}
    assert "tied.w" in fails(ConfigError, lambda: checkpoint.load(path, tensors=tensors, complete=True, verified=True))
    tensors["tied.w"] = torch.zeros(1000)
    checkpoint.load(path, tensors=tensors, complete=True, verified=True)
    reference = load_file(folder / "reference.safetensors")
    for name, tensor in tensors.items():
        if name.startswith("stage"):
            assert torch.equal(tensor, torch.full((4, 3), float(name[5]))), name
        elif name != "tied.w":
            assert same(full(tensor), reference[name]), name
    assert torch.equal(tensors["tied.w"], torch.arange(1000.0))
    assert checkpoint.read_state(path) == {"rank": 0}


def job_kill(folder: Path, rank: int) -> None:
    """SIGKILL a saving process before each of its file operations; afterwards a whole checkpoint is always there."""
    moments = {}
    for case, step in (("next step", 2), ("same step", 1)):
        directory = folder / case
        for moment in range(1, 1000):
            shutil.rmtree(directory, ignore_errors=True)
            checkpoint.save(directory, step=1, tensors=some_tensors(1.0), state={"value": 1}, keep=Retention(1))
            finished = _save_in_child(directory, step, kill_at=moment)
            for path in checkpoint.list_checkpoints(directory):
                assert checkpoint.verify(path) is None, (case, moment, path)
            latest, _ = checkpoint.find_latest(directory)
            assert latest is not None, (case, moment)
            value = checkpoint.read_state(latest)["value"]
            assert loaded(latest, value), (case, moment)
            assert not finished or value == 2
            if finished:
                break
            checkpoint.save(directory, step=3, tensors=some_tensors(3.0), state={"value": 3}, keep=Retention(1))
            assert os.listdir(directory) == ["step-000000003"], (case, moment)
        moments[case] = moment
    (folder / "moments.json").write_text(json.dumps(moments))


def _save_in_child(directory: Path, step: int, *, kill_at: int) -> bool:
    """Save in a forked process that gets SIGKILL before its `kill_at`-th file operation; whether it got through."""
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
    checkpoint.save(directory, step=step, tensors=some_tensors(2.0), state={"value": 2}, keep=Retention(1))
    os._exit(0)


def job_full(folder: Path, rank: int) -> None:
    """`folder` is a file system of 8 MiB: one save too large for it, one during which another program fills it."""
    directory = folder / "run"
    checkpoint.save(directory, step=1, tensors=some_tensors(1.0), state={}, keep=Retention(3))
    large = {"w": torch.ones(4_000_000)}
    message = fails(
        checkpoint.CheckpointError,
        lambda: checkpoint.save(directory, step=2, tensors=large, state={}, keep=Retention(3)),
    )
    assert "not enough room" in message
    assert "needs 16000000 bytes" in message
    assert os.listdir(directory) == ["step-000000001"]

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
    message = fails(
        checkpoint.CheckpointError,
        lambda: checkpoint.save(directory, step=2, tensors=medium, state={}, keep=Retention(3)),
    )
    assert not is_armed
    assert "No space left on device" in message
    assert f"needs 2000000 bytes and {shutil.disk_usage(folder).free} bytes are free in {directory}" in message
    assert os.listdir(directory) == ["step-000000001"]
    assert loaded(directory / "step-000000001", 1.0)
    filler.unlink()
    checkpoint.save(directory, step=2, tensors=medium, state={}, keep=Retention(3))
    assert len(checkpoint.list_checkpoints(directory)) == 2


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def job_pickle(folder: Path, rank: int) -> None:
    """Pickles lie everywhere in a checkpoint, in a shard's place too: none is opened."""
    canary = folder / "canary"
    bomb = pickle.dumps(Canary(canary)) + bytes(1000)  # what follows a pickle is ignored
    pickle.loads(bomb)
    assert canary.is_dir(), "the canary must sing when it is let out"
    canary.rmdir()
    path = checkpoint.save(folder / "run", step=1, tensors=some_tensors(1.0), state={"a": 1}, keep=Retention(3))
    for name in (".metadata", "__0_0.distcp", "model.pt", "pytorch_model.bin", "state.pkl", "shard-00007.safetensors"):
        (path / name).write_bytes(bomb)
    events = []
    sys.addaudithook(lambda event, _: events.append(event) if event.startswith("pickle.") else None)
    assert checkpoint.find_latest(folder / "run") == (path, [])
    assert loaded(path, 1.0)
    assert checkpoint.read_state(path) == {"a": 1}
    assert len(list(checkpoint.read_tensors(path))) == len(checkpoint.tensor_metadata(path)) == 2
    replace_file(path, "shard-00000.safetensors", bomb)
    assert "no valid safetensors" in fails(
        checkpoint.CheckpointError, lambda: checkpoint.load(path, tensors=some_tensors(0.0))
    )
    assert not events
    assert not canary.exists()


# Damage


def flip_bit(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << random.Random(position).randrange(8)
    path.write_bytes(data)


def replace_file(path: Path, name: str, data: bytes) -> None:
    """Put other content in a file of a checkpoint and a manifest that fits it, as an attacker would."""
    manifest = read_manifest(path)
    (path / name).unlink()
    files = {**manifest.files, name: write_file(path / name, [data])}
    (path / MANIFEST).write_bytes(encode_manifest(replace(manifest, files=files)))


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """A directory with steps 1 and 2; the paths of both."""
    save = [
        checkpoint.save(
            tmp_path / "run", step=step, tensors=some_tensors(step), state={"value": step}, keep=Retention(2)
        )
        for step in (1, 2)
    ]
    return save[0], save[1]


def skipped_reason(first: Path, second: Path) -> str:
    """Why the second checkpoint is skipped; the first must be chosen, and load."""
    latest, skipped = checkpoint.find_latest(first.parent)
    assert latest == first
    assert [path for path, _ in skipped] == [second]
    assert loaded(first, 1.0)
    return skipped[0][1]


def test_any_flipped_bit_is_found(two: tuple[Path, Path]) -> None:
    for name in sorted(os.listdir(two[1])):
        original = (two[1] / name).read_bytes()
        step = 1 if name == MANIFEST else 97
        for position in {*range(0, len(original), step), len(original) - 1}:
            flip_bit(two[1] / name, position)
            reason = checkpoint.verify(two[1])
            assert reason, (name, position)
            assert name in reason or name == MANIFEST
            (two[1] / name).write_bytes(original)
        flip_bit(two[1] / name, len(original) // 2)
        skipped_reason(*two)
        (two[1] / name).write_bytes(original)
    assert checkpoint.find_latest(two[1].parent) == (two[1], [])


@pytest.mark.parametrize("name", ["shard-00000.safetensors", INDEX, "state.json", MANIFEST])
def test_truncated_and_missing_files_are_found(two: tuple[Path, Path], name: str) -> None:
    data = (two[1] / name).read_bytes()
    (two[1] / name).write_bytes(data[:-1])
    assert name in skipped_reason(*two)
    (two[1] / name).write_bytes(b"")
    assert name in skipped_reason(*two)
    (two[1] / name).unlink()
    assert f"{name} is missing" in skipped_reason(*two)
    with pytest.raises(checkpoint.CheckpointError, match="is missing"):
        checkpoint.load(two[1], tensors=some_tensors(0.0))
    with pytest.raises(checkpoint.CheckpointError, match="is missing"):
        list(checkpoint.read_tensors(two[1]))


def test_no_whole_checkpoint(two: tuple[Path, Path], tmp_path: Path) -> None:
    for path in two:
        (path / MANIFEST).unlink()
    latest, skipped = checkpoint.find_latest(tmp_path / "run")
    assert latest is None
    assert [path for path, _ in skipped] == [two[1], two[0]]
    assert checkpoint.find_latest(tmp_path / "absent") == (None, [])
    with pytest.raises(checkpoint.CheckpointError, match="no such folder"):
        checkpoint.read_state(tmp_path / "absent")


def test_links_and_pipes_are_not_followed(two: tuple[Path, Path], tmp_path: Path) -> None:
    shard = two[1] / "shard-00000.safetensors"
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    assert "symbolic link" in skipped_reason(*two)
    with pytest.raises(checkpoint.CheckpointError, match="symbolic link"):
        checkpoint.load(two[1], tensors=some_tensors(0.0), verified=True)
    shard.unlink()
    os.mkfifo(shard)
    assert "no regular file" in skipped_reason(*two)
    (tmp_path / "run" / "step-000000009").symlink_to(two[0])
    assert checkpoint.list_checkpoints(tmp_path / "run") == [two[1], two[0]]


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "a/../b", "..", "shard-00000.safetensors/..", "x.pkl"])
def test_manifest_with_foreign_names_is_refused(two: tuple[Path, Path], name: str) -> None:
    manifest = read_manifest(two[1])
    files = {**manifest.files, name: FileRecord(1, "0" * 64)}
    (two[1] / MANIFEST).write_bytes(encode_manifest(replace(manifest, files=files)))
    assert "no file of a checkpoint" in skipped_reason(*two)


def test_manifest_of_another_step_or_version_is_refused(two: tuple[Path, Path]) -> None:
    shutil.copy(two[0] / MANIFEST, two[1] / MANIFEST)
    assert "is of step 1" in skipped_reason(*two)
    text = (two[0] / MANIFEST).read_text().replace('"format_version": 1', '"format_version": 2')
    (two[1] / MANIFEST).write_text(text)
    assert "format version 2" in skipped_reason(*two)


def test_hostile_shards_and_indices_are_refused(two: tuple[Path, Path]) -> None:
    def shard(header: dict[str, object], data: bytes) -> bytes:
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data

    w = {"dtype": "F32", "shape": [40, 5], "data_offsets": [0, 800]}
    b = {"dtype": "BF16", "shape": [7], "data_offsets": [800, 814]}
    for data in [
        (1 << 62).to_bytes(8, "little") + bytes(1000),
        shard({"w": w, "b": {**b, "data_offsets": [790, 804]}}, bytes(804)),  # one over the other
        shard({"w": {**w, "shape": [1 << 40, 5]}, "b": b}, bytes(814)),
        shard({"w": w, "x": b}, bytes(814)),
        shard({"w": w, "b": {**b, "dtype": "F16"}}, bytes(814)),
        shard({"w": w, "b": {**b, "shape": [7, 1]}}, bytes(814)),
    ]:
        replace_file(two[1], "shard-00000.safetensors", data)
        assert checkpoint.verify(two[1]) is None, "the manifest fits"
        with pytest.raises(checkpoint.CheckpointError, match=r"shard-00000\.safetensors"):
            checkpoint.load(two[1], tensors=some_tensors(0.0))
        with pytest.raises(checkpoint.CheckpointError, match=r"shard-00000\.safetensors"):
            list(checkpoint.read_tensors(two[1]))
    index = json.loads((two[0] / INDEX).read_text())
    chunk = index["w"]["chunks"][0]
    for shape, chunks in [
        ([40, 5], [{**chunk, "shape": [20, 5]}]),
        ([40, 5], [{**chunk, "offsets": [-1, 0]}]),
        ([1 << 40, 5], [{**chunk, "shape": [1 << 40, 5]}]),
        ([40, 5], [{**chunk, "file": "../../secret"}]),
        ([40, 5], [{**chunk, "offsets": [0]}]),
        ([40, 5], "chunks"),
    ]:
        replace_file(two[1], INDEX, json.dumps({"w": {"dtype": "F32", "shape": shape, "chunks": chunks}}).encode())
        with pytest.raises(checkpoint.CheckpointError, match=r"tensors\.json"):
            checkpoint.tensor_metadata(two[1])
    replace_file(two[1], "state.json", b"[" * 100_000)
    with pytest.raises(checkpoint.CheckpointError, match="no valid JSON"):
        checkpoint.read_state(two[1])


# One process


def test_round_trip_without_process_group(tmp_path: Path) -> None:
    tensors = {
        "matrix.weight": torch.randn(3, 4).t(),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "flags": torch.tensor([True, False]),
        "half": torch.randn(5).bfloat16(),
        "small": torch.randn(6).to(torch.float8_e4m3fn),
        'näme with spaces/"quotes"': torch.arange(5),
    }
    tensors["tied"] = tensors["half"]
    state = {"step": 5, "data": {"position": 12345678901234}, "rng": [1, 2], "best": float("inf")}
    path = checkpoint.save(tmp_path, step=5, tensors=tensors, state=state, keep=Retention(1))
    assert path == tmp_path / "step-000000005"
    assert checkpoint.read_state(path) == state
    assert checkpoint.tensor_metadata(path) == {name: (t.shape, t.dtype) for name, t in tensors.items()}
    target = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    checkpoint.load(path, tensors=target, complete=True)
    assert all(same(target[name], tensor) for name, tensor in tensors.items())
    read = dict(checkpoint.read_tensors(path))
    assert list(read) == sorted(tensors)
    assert all(same(read[name], tensor) for name, tensor in tensors.items())
    assert [name for name, _ in checkpoint.read_tensors(path, ["tied", "flags"])] == ["tied", "flags"]
    with pytest.raises(ConfigError, match="holds no tensor 'absent'"):
        checkpoint.read_tensors(path, ["absent"])


def test_every_piece_is_aligned(tmp_path: Path) -> None:
    dtypes = [torch.uint8, torch.float64, torch.bfloat16, torch.float32]
    tensors = {f"t{i}": torch.ones(3, dtype=dtype) for i, dtype in enumerate(dtypes)}
    path = checkpoint.save(tmp_path, step=1, tensors=tensors, state={}, keep=Retention(1))
    data = (path / "shard-00000.safetensors").read_bytes()
    header_bytes = int.from_bytes(data[:8], "little")
    assert header_bytes % 8 == 0
    header = json.loads(data[8 : 8 + header_bytes])
    for name, tensor in tensors.items():
        assert header[name]["data_offsets"][0] % tensor.itemsize == 0


def test_same_content_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        checkpoint.save(tmp_path / name, step=1, tensors=some_tensors(1.0), state={"x": 1}, keep=Retention(1))
    manifests = [(tmp_path / name / "step-000000001" / MANIFEST).read_bytes() for name in ("a", "b")]
    assert manifests[0] == manifests[1]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_pytorch_reads_our_shards(tmp_path: Path) -> None:
    from torch.distributed.checkpoint import load
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    path = checkpoint.save(tmp_path, step=1, tensors=some_tensors(1.0), state={}, keep=Retention(1))
    target = some_tensors(0.0)
    load(target, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    assert all(same(target[name], tensor) for name, tensor in some_tensors(1.0).items())


def test_checkpoint_of_another_model(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, step=1, tensors=some_tensors(1.0), state={}, keep=Retention(1))
    for wrong, words in [
        ({"w": torch.zeros(41, 5)}, [r"'w'", r"\[41, 5\]", r"\[40, 5\]", "another model"]),
        ({"w": torch.zeros(40, 5).half()}, [r"'w'", "float16", "float32"]),
        ({"w": torch.zeros(40, 5), "layers.3.w": torch.zeros(1)}, [r"no tensor 'layers\.3\.w'"]),
        ({"w": torch.zeros(40, 5, device="meta")}, [r"'w'", "meta"]),
    ]:
        with pytest.raises(ConfigError) as caught:
            checkpoint.load(path, tensors=wrong)
        for word in words:
            assert caught.match(word)
        assert wrong["w"].is_meta or not wrong["w"].any()
    with pytest.raises(ConfigError, match=r"nothing here asks for, 'b'"):
        checkpoint.load(path, tensors={"w": torch.zeros(40, 5)}, complete=True)
    for step, keep_last in ((-1, 1), (1, 0)):
        with pytest.raises(ConfigError, match=f"not step {step} and keep_last {keep_last}"):
            checkpoint.save(tmp_path, step=step, tensors={}, state={}, keep=Retention(keep_last))


def test_retention_replacement_and_leftovers(tmp_path: Path) -> None:
    def save(step: int, keep_last: int) -> list[str]:
        checkpoint.save(tmp_path, step=step, tensors=some_tensors(step), state={}, keep=Retention(keep_last))
        return sorted(os.listdir(tmp_path))

    for leftover in (".saving-step-000000001-ab", ".deleting-step-000000001-ab"):
        (tmp_path / leftover / "deep").mkdir(parents=True)
    assert save(100, 3) == ["step-000000100"]
    save(200, 3)
    assert save(300, 2) == ["step-000000200", "step-000000300"]
    # Taken up again at 200: the later step stays, and does not count.
    assert save(250, 2) == ["step-000000200", "step-000000250", "step-000000300"]
    shutil.rmtree(tmp_path / "step-000000300")
    assert save(260, 1) == ["step-000000260"]
    assert save(260, 1) == ["step-000000260"]
    # A save of the same step that died between its two renames: the old one is found, and put back by the next save.
    aside = tmp_path / ".replaced-step-000000260-0123456789abcdef"
    (tmp_path / "step-000000260").rename(aside)
    assert checkpoint.find_latest(tmp_path) == (aside, [])
    assert loaded(aside, 260.0)
    assert save(1_234_567_890_123, 2) == ["step-000000260", "step-1234567890123"]
    aside.mkdir()
    assert save(1_234_567_890_124, 1) == ["step-1234567890124"]


def test_everything_is_on_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real_fsync(descriptor)

    def rename(source: Path, target: Path) -> None:
        done.append(f"rename to {Path(target).name}")
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    checkpoint.save(tmp_path / "run", step=1, tensors=some_tensors(1.0), state={}, keep=Retention(1))
    made, *files, hidden, renamed, parent = done
    assert made == tmp_path.name, "the new directory itself"
    assert files == ["shard-00000.safetensors", INDEX, "state.json", MANIFEST]
    assert hidden.startswith(".saving-step-000000001-")
    assert renamed == "rename to step-000000001"
    assert parent == "run"


def test_an_interrupt_stays_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, step=1, tensors=some_tensors(1.0), state={}, keep=Retention(1))

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, step=2, tensors=some_tensors(2.0), state={}, keep=Retention(1))
    assert checkpoint.find_latest(tmp_path) == (tmp_path / "step-000000001", [])
    checkpoint.save(tmp_path, step=2, tensors=some_tensors(2.0), state={}, keep=Retention(1))
    assert os.listdir(tmp_path) == ["step-000000002"]


def test_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(checkpoint.CheckpointError) as caught:
        checkpoint.save(tmp_path / "file" / "run", step=1, tensors=some_tensors(1.0), state={}, keep=Retention(1))
    assert caught.match("step-000000001: not saved: Not a directory on rank 0")


# Several processes


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the 4-rank job has run."""
    folder = tmp_path_factory.mktemp("four")
    assert run_ranks("four", folder, 4) == [0, 0, 0, -signal.SIGKILL]
    return folder


def test_saved_on_four_ranks_read_by_one(four: Path) -> None:
    path = four / "run" / "step-000000010"
    reference = load_file(four / "reference.safetensors")
    target = trained("one", seed=5)
    assert set(target) == set(reference)
    checkpoint.load(path, tensors=target)
    assert all(same(tensor, reference[name]) for name, tensor in target.items())
    read = dict(checkpoint.read_tensors(path))
    assert len(read) == len(reference) + 5
    assert all(same(read[name], tensor) for name, tensor in reference.items())


def test_saved_on_four_ranks_loaded_by_two(four: Path) -> None:
    assert run_ranks("two", four, 2) == [0, 0]


def test_every_byte_is_written_once(four: Path) -> None:
    path = four / "run" / "step-000000010"
    whole_bytes = sum(t.nbytes for t in load_file(four / "reference.safetensors").values()) + 4 * 48 + 4000
    shards = sorted(path.glob("shard-*"))
    assert len(shards) == 4
    data_bytes = [p.stat().st_size - 8 - int.from_bytes(p.read_bytes()[:8], "little") for p in shards]
    assert sum(data_bytes) == whole_bytes == read_manifest(path).tensor_bytes
    assert read_manifest(path).ranks == 4


def test_a_lost_rank_leaves_what_was_there(four: Path) -> None:
    assert {p.name for p in checkpoint.list_checkpoints(four / "run")} == {"step-000000010", "step-000000012"}
    assert checkpoint.verify(four / "run" / "step-000000010") is None


def test_killed_at_every_file_operation(tmp_path: Path) -> None:
    assert run_ranks("kill", tmp_path, 1) == [0]
    moments = json.loads((tmp_path / "moments.json").read_text())
    assert moments["next step"] > 20
    assert moments["same step"] > 20


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    assert run_ranks("pickle", tmp_path, 1) == [0]


def test_full_disk(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs here: {mounted.stderr.decode().strip()}")
    try:
        assert run_ranks("full", tmp_path, 1) == [0]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def main() -> None:
    job, folder, rank, ranks = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    jobs = {"four": job_four, "two": job_two, "kill": job_kill, "full": job_full, "pickle": job_pickle}
    if ranks > 1:
        meeting = f"file://{folder / f'meeting-{job}'}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    jobs[job](folder, rank)
    if job == "two":
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
