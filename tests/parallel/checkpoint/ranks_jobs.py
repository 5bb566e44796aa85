"""Save and load on several gloo ranks and many layouts, and lose a rank: a program of conftest.py and test_load.py.

python ranks_jobs.py JOB FOLDER RANK RANKS
"""

import os
import resource
import signal
from pathlib import Path

import torch
import torch.distributed as dist
from cases import fails, flip_bit, newest, run_main, same
from safetensors.torch import load_file, save_file
from torch import nn

from gpt.errors import ConfigError
from gpt.training.config import Retention
from parallel.checkpoint.find import find_latest
from parallel.checkpoint.handle import verify_checkpoint
from parallel.checkpoint.load import load_checkpoint
from parallel.checkpoint.save import save_checkpoint
from parallel.errors import CheckpointError

LAYOUTS = {
    "dp2tp2": ((2, 2), ("dp", "tp")),
    "tp2": ((2,), ("tp",)),
    "dp4": ((4,), ("dp",)),
    "replicate2shard2": ((2, 2), ("replicate", "shard")),
}


class Net(nn.Module):
    """Column- and row-wise parallel layers, a norm, and a head whose 5 rows no number of ranks here divides."""

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


def job_four(folder: Path, rank: int) -> None:
    """Save on 4 ranks, load on other layouts, fail on one rank, and finally lose a rank."""
    directory = folder / "run"
    tensors = trained("dp2tp2", seed=1)
    reference = {name: full(t).detach().clone() for name, t in tensors.items()}
    tensors |= {f"stage{rank}.w": torch.full((4, 3), float(rank))}  # pipeline stages hold different names
    if rank in (0, 3):
        tensors["tied.w"] = torch.arange(1000.0)
    path = save_checkpoint(directory, step=10, tensors=tensors, state={"rank": rank}, keep=Retention(2))
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
        load_checkpoint(verify_checkpoint(path), tensors=tensors)
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
    path = save_checkpoint(folder / "layouts", step=1, tensors=tensors, state={}, keep=Retention(1))
    target = {name: torch.zeros_like(tensor) for name, tensor in whole.items()}
    load_checkpoint(verify_checkpoint(path), tensors=target, complete=True)
    assert all(same(target[name], whole[name]) for name in whole)

    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    pair = pairs[rank // 2]
    mine = {"w": torch.full((6,), float(rank // 2))}
    path = save_checkpoint(folder / f"pair{rank // 2}", step=1, tensors=mine, state={}, keep=Retention(1), group=pair)
    target = {"w": torch.zeros(6)}
    load_checkpoint(verify_checkpoint(path), tensors=target, group=pair)
    assert same(target["w"], mine["w"])
    assert newest(folder / f"pair{rank // 2}", group=pair) == (path, [])
    dist.barrier()


def _refuse_on_four(directory: Path, path: Path, rank: int) -> None:
    """A mistake on one rank raises the same one-line error on all, and changes nothing."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    mesh = init_device_mesh("cpu", (4,))

    def save(tensors: dict[str, torch.Tensor], state: dict[str, object] | None = None) -> str:
        return fails(
            ConfigError,
            lambda: save_checkpoint(directory, step=11, tensors=tensors, state=state or {}, keep=Retention(2)),
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
    message = fails(ConfigError, lambda: load_checkpoint(verify_checkpoint(path), tensors=target))
    assert "model.norm.weight" in message
    assert "[13]" in message
    assert "[12]" in message
    assert not target["model.norm.weight"].any()
    assert os.listdir(directory) == ["step-000000010"]
    dist.barrier()


def _one_rank_fails(directory: Path, rank: int) -> None:
    """The disk refuses rank 2 in the middle of its file: all ranks give up. The next save works."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    tensors = {f"stage{rank}.w": torch.ones(100_000)}
    message = fails(
        CheckpointError,
        lambda: save_checkpoint(directory, step=12, tensors=tensors, state={}, keep=Retention(1)),
    )
    assert "File too large on rank 2" in message
    assert "needs 1600000 bytes" in message
    assert "step-000000012" in message
    assert "are free" in message
    assert os.listdir(directory) == ["step-000000010"]
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    path = save_checkpoint(directory, step=12, tensors=tensors, state={}, keep=Retention(2))
    shard = path / "shard-00003.safetensors"
    if rank == 0:
        flip_bit(shard, shard.stat().st_size // 2)
    dist.barrier()
    latest, skipped = newest(directory)
    assert latest == directory / "step-000000010"
    assert [p for p, _ in skipped] == [path]
    assert "shard-00003.safetensors" in skipped[0][1]
    assert "shard-00003" in fails(CheckpointError, lambda: load_checkpoint(verify_checkpoint(path), tensors=tensors))


def _one_rank_dies(directory: Path, rank: int) -> None:
    if rank == 3:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # its file is written, but not synced
    tensors = {f"stage{rank}.w": torch.ones(1000)}
    message = fails(
        CheckpointError,
        lambda: save_checkpoint(directory, step=13, tensors=tensors, state={}, keep=Retention(1)),
    )
    assert "another rank died" in message
    assert "untouched" in message


def job_two(folder: Path, rank: int) -> None:
    """Load the 4 ranks' checkpoint on tensor parallel 2."""
    directory = folder / "run"
    found, skipped = find_latest(directory)
    assert found is not None
    assert found.path == directory / "step-000000010"
    assert [p.name for p, _ in skipped] == ["step-000000012"]
    tensors = trained("tp2", seed=4) | {f"stage{stage}.w": torch.zeros(4, 3) for stage in (rank, 2 + rank)}
    assert "tied.w" in fails(ConfigError, lambda: load_checkpoint(found, tensors=tensors, complete=True))
    tensors["tied.w"] = torch.zeros(1000)
    load_checkpoint(found, tensors=tensors, complete=True)
    reference = load_file(folder / "reference.safetensors")
    for name, tensor in tensors.items():
        if name.startswith("stage"):
            assert torch.equal(tensor, torch.full((4, 3), float(name[5]))), name
        elif name != "tied.w":
            assert same(full(tensor), reference[name]), name
    assert torch.equal(tensors["tied.w"], torch.arange(1000.0))
    assert found.state == {"rank": 0}


if __name__ == "__main__":
    run_main({"four": job_four, "two": job_two})
