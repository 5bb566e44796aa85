"""A checkpoint is verified once, and each of its small files is read once, by whoever finds, resumes and loads."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.training.config import Retention
from parallel.agreement import ALONE
from parallel.checkpoint.find import discard_after, find_latest
from parallel.checkpoint.folders import list_checkpoints
from parallel.checkpoint.handle import read_checkpoint_header, verify_checkpoint, verify_header
from parallel.checkpoint.load import load_checkpoint
from parallel.checkpoint.save import save_checkpoint
from parallel.errors import CheckpointError


@pytest.fixture
def directory(tmp_path: Path, cases: Any) -> Path:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step=step, tensors=cases.some_tensors(step), state={"value": step}, keep=Retention(3))
    return tmp_path


def test_finding_and_loading_reads_each_small_file_once(
    directory: Path, monkeypatch: pytest.MonkeyPatch, cases: Any
) -> None:
    opened: Counter[str] = Counter()
    real_open = os.open

    def count(path: Any, *args: Any, **kwargs: Any) -> int:
        opened[Path(path).name] += 1
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", count)
    found, skipped = find_latest(directory)
    assert found is not None
    assert (found.step, found.state, skipped) == (3, {"value": 3}, [])
    tensors = cases.some_tensors(-1)
    load_checkpoint(found, tensors=tensors, complete=True)
    assert cases.same(tensors["w"], cases.some_tensors(3)["w"])
    assert (opened["MANIFEST.json"], opened["state.json"]) == (1, 1)
    assert opened["tensors.json"] == 2, "hashed with the shards, then parsed by the rank that loads"


def test_limits_of_finding(directory: Path) -> None:
    found, _ = find_latest(directory, at_most=2)
    assert found is not None
    assert found.step == 2
    assert find_latest(directory, newer_than=3) == (None, [])
    discard_after(directory, step=1)
    assert [path.name for path in list_checkpoints(directory)] == ["step-000000001"]


STATE: dict[str, Any] = {
    "step": 3,
    "tokens_seen": 96,
    "optimizer_steps": 3,
    "run_id": "r",
    "config": {"model": {"n_layers": 2}, "data": {"train": []}},
    "data": {"seed": 1, "corpora": [{"name": "a", "streams": {"labels": 5}}]},
    "loop": {
        "skipped": [{"first": 3, "stop": 5, "why": "data.skip"}],
        "spikes": {"losses": [5.5], "seen": 1, "high": 0, "first_high": 0},
        **{"skipped_steps": 0, "skipped_in_a_row": 0, "rewinds": 0},
    },
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": float("nan")}, "step = nan is no whole number"),
        ({"step": 4}, r"state\.json is of step 4, and MANIFEST\.json of step 3"),
        ({"tokens_seen": -1}, "tokens_seen = -1 is no whole number"),
        ({"optimizer_steps": 10**300}, r"optimizer_steps = 1000000.*\.\.\..* is no whole number"),
        ({"config": []}, r"config = \[\] is no object"),
        ({"config": {"model": 3}}, r"config\.model = 3 is no object"),
        ({"data": {"corpora": [{}]}}, r"data\.corpora\[0\]\.name is missing"),
        ({"loop": None}, "loop = None is no object"),
        ({"loop": {**STATE["loop"], "skipped": [[0, 1]]}}, r"loop\.skipped\[0\] = \[0, 1\] is no object"),
        ({"loop": {**STATE["loop"], "spikes": {}}}, r"loop\.spikes\.losses is missing"),
        ({"fast_tier": {"rank": "0"}}, r"fast_tier\.save_id is missing"),
        ({"other": eval("[" * 90 + "]" * 90)}, "other is nested more than 20 times"),
    ],
)
def test_a_state_of_wrong_types_is_damage_in_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """Crafted by hand, with right digests: the search skips it, and names the first fault."""
    tensors = {"w": torch.zeros(1)}
    good = save_checkpoint(tmp_path, step=2, tensors=tensors, state={**STATE, "step": 2}, keep=Retention(2))
    path = save_checkpoint(tmp_path, step=3, tensors=tensors, state={**STATE, **change}, keep=Retention(2))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint_header(path)
    found, skipped = find_latest(tmp_path)
    assert found is not None
    assert (found.path, [one for one, _ in skipped]) == (good, [path])


def test_a_header_is_no_proof_of_the_shards(directory: Path, cases: Any) -> None:
    path = directory / "step-000000003"
    header = read_checkpoint_header(path)
    assert verify_header(header, group=ALONE) == verify_checkpoint(path)
    cases.flip_bit(path / "shard-00000.safetensors", 700)
    assert read_checkpoint_header(path) == header
    with pytest.raises(CheckpointError, match=r"shard-00000\.safetensors is damaged"):
        verify_header(header, group=ALONE)
    with pytest.raises(CheckpointError, match=r"shard-00000\.safetensors is damaged"):
        verify_checkpoint(path)
