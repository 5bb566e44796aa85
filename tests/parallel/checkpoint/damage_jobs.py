"""Read damaged and hostile checkpoints: a program of test_damage.py.

python damage_jobs.py JOB FOLDER RANK RANKS
"""

import json
import os
import pickle
import random
import shutil
import sys
from collections import Counter
from pathlib import Path

import torch
import torch.distributed as dist
from cases import fails, flip_bit, loaded, newest, replace_file, run_main, some_tensors

from gpt.training.config import Retention
from parallel.agreement import combine
from parallel.checkpoint.find import find_latest
from parallel.checkpoint.handle import read_checkpoint_header, verify_checkpoint
from parallel.checkpoint.load import load_checkpoint, read_tensors
from parallel.checkpoint.local_tier import find_newest_local, load_local, mark, rank_directory
from parallel.checkpoint.manifest import INDEX, MANIFEST
from parallel.checkpoint.save import save_checkpoint
from parallel.errors import CheckpointError


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def job_pickle(folder: Path, rank: int) -> None:
    """Pickles in a checkpoint, even in place of a shard, are never opened."""
    canary = folder / "canary"
    bomb = pickle.dumps(Canary(canary)) + bytes(1000)  # bytes after a pickle are ignored
    pickle.loads(bomb)
    assert canary.is_dir(), "unpickling it must make the folder"
    canary.rmdir()
    path = save_checkpoint(folder / "run", step=1, tensors=some_tensors(1.0), state={"a": 1}, keep=Retention(3))
    for name in (".metadata", "__0_0.distcp", "model.pt", "pytorch_model.bin", "state.pkl", "shard-00007.safetensors"):
        (path / name).write_bytes(bomb)
    tier = folder / "local" / "run-12345678"
    tier.mkdir(parents=True)
    state = mark({"step": 1, "run_id": "r"}, save_id="s", layout={})
    mine = save_checkpoint(rank_directory(tier), step=1, tensors=some_tensors(1.0), state=state, keep=Retention(1))
    for name in (".metadata", "__0_0.distcp", "shard-00007.safetensors", "state.pkl"):
        (mine / name).write_bytes(bomb)
    events = []
    sys.addaudithook(lambda event, _: events.append(event) if event.startswith("pickle.") else None)
    assert newest(folder / "run") == (path, [])
    assert loaded(path, 1.0)
    assert read_checkpoint_header(path).state == {"a": 1}
    checkpoint = verify_checkpoint(path)
    assert len(list(read_tensors(checkpoint))) == len(checkpoint.index) == 2
    found, messages, _ = find_newest_local(tier, run_id="r", layout={})
    assert found is not None
    assert (found.path, messages) == (mine, [])
    load_local(found, some_tensors(0.0))
    for name in (INDEX, "state.json", MANIFEST):
        whole = (mine / name).read_bytes()
        (mine / name).write_bytes(bomb)
        assert find_newest_local(tier, run_id="r", layout={})[0] is None
        (mine / name).write_bytes(whole)
    replace_file(path, "shard-00000.safetensors", bomb)
    assert "no valid safetensors" in fails(
        CheckpointError, lambda: load_checkpoint(verify_checkpoint(path), tensors=some_tensors(0.0))
    )
    assert not events
    assert not canary.exists()


def job_flips(folder: Path, rank: int) -> None:
    """Damage a file of the newest checkpoint, COUNT times: all ranks choose the previous one."""
    directory, rng, kinds = folder / "run", random.Random(12), Counter[str]()
    paths = [
        save_checkpoint(directory, step=step, tensors=_two_ranks(step), state={"value": step}, keep=Retention(2))
        for step in (1, 2)
    ]
    names = sorted(os.listdir(paths[1]))
    assert len(names) == 5
    sizes = {name: (paths[1] / name).stat().st_size for name in names}
    dist.barrier()
    for i in range(int(os.environ["COUNT"])):
        name, kind = rng.choice(names), ("flip", "truncate", "delete")[i % 3]
        position = rng.randrange(sizes[name])
        if rank == 0:
            shutil.copy(paths[1] / name, folder / "aside")
            _damage(paths[1] / name, kind, position)
        dist.barrier()
        latest, skipped = find_latest(directory)
        assert latest is not None
        assert combine((latest.path, skipped), list, None) == [(latest.path, skipped)] * 2
        assert latest.path == paths[0], (name, kind, position)
        assert [path for path, _ in skipped] == [paths[1]]
        assert name in skipped[0][1] or name == MANIFEST, (skipped[0][1], name, kind, position)
        target = _two_ranks(-1)
        fails(CheckpointError, lambda target=target: load_checkpoint(verify_checkpoint(paths[1]), tensors=target))
        assert all(torch.equal(target[key], tensor) for key, tensor in _two_ranks(-1).items()), "something was used"
        load_checkpoint(latest, tensors=target, complete=True)
        assert all(torch.equal(target[key], tensor) for key, tensor in _two_ranks(1).items())
        dist.barrier()
        if rank == 0:
            shutil.move(folder / "aside", paths[1] / name)
            kinds[f"{kind} {name}"] += 1
        dist.barrier()
    assert newest(directory) == (paths[1], [])
    dist.barrier()
    if rank == 0:
        for path in paths:
            _damage(path / names[-1], "flip", 20)
        (folder / "damage.json").write_text(json.dumps(kinds, sort_keys=True))
    dist.barrier()
    latest, skipped = find_latest(directory)
    assert latest is None
    assert [path for path, _ in skipped] == [paths[1], paths[0]]


def _two_ranks(value: float) -> dict[str, torch.Tensor]:
    """Tensors on both ranks, so that each rank writes a part."""
    return {f"t{i}": torch.full((50 + i,), float(value)) for i in range(4)}


def _damage(path: Path, kind: str, position: int) -> None:
    if kind == "flip":
        flip_bit(path, position)
    elif kind == "truncate":
        os.truncate(path, position)
    else:
        path.unlink()


if __name__ == "__main__":
    run_main({"pickle": job_pickle, "flips": job_flips})
