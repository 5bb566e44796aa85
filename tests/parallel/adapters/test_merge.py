"""Weights read from checkpoints with adapters, whole and in shards, and from bases. test_adapter.py has whole runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from gpt.errors import ConfigError
from gpt.training.config import Retention
from parallel.adapters.base import reference_to, with_bases
from parallel.adapters.merge import load_merged, read_merged
from parallel.checkpoint.handle import Checkpoint, verify_checkpoint
from parallel.checkpoint.save import save_checkpoint

UP, DOWN, NORM = "model.blocks.0.mlp.up", "model.blocks.0.mlp.down", "model.norm.weight"


def save(run: Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> Checkpoint:
    (run / "checkpoints").mkdir(parents=True)
    path = save_checkpoint(run / "checkpoints", step=1, tensors=tensors, state=state, keep=Retention(1))
    return verify_checkpoint(path)


def adapters(name: str, seed: int) -> dict[str, torch.Tensor]:
    rows, columns = (6, 4) if name == UP else (4, 6)
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{name}.adapter.a": torch.randn(2, columns, generator=generator),
        f"{name}.adapter.b": torch.randn(rows, 2, generator=generator),
    }


def product(found: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return 1.5 * found[f"{name}.adapter.b"] @ found[f"{name}.adapter.a"]


WEIGHTS = {f"{UP}.weight": torch.randn(6, 4), f"{DOWN}.weight": torch.randn(4, 6), NORM: torch.randn(4)}
ADAPTER = {"config": {"adapter": {"rank": 2, "alpha": 3.0}}}


def test_only_projections_with_adapters_change(process_group: None, tmp_path: Path) -> None:
    own = adapters(UP, 1)
    chain = with_bases(save(tmp_path / "with", WEIGHTS | own, ADAPTER))
    assert len(chain) == 1
    expected = {**WEIGHTS, f"{UP}.weight": WEIGHTS[f"{UP}.weight"] + product(own, UP)}
    loaded = {name: torch.empty_like(tensor) for name, tensor in WEIGHTS.items()}
    load_merged(chain, loaded)
    for name in WEIGHTS:
        torch.testing.assert_close(loaded[name], expected[name])
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in read_merged(chain, WEIGHTS))
    mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("tp",))
    sharded = distribute_tensor(torch.empty(6, 4), mesh, [Shard(0)])
    load_merged(chain, {f"{UP}.weight": sharded})
    torch.testing.assert_close(sharded.to_local(), expected[f"{UP}.weight"])
    narrow = {f"{UP}.weight": torch.empty(6, 4, dtype=torch.bfloat16)}
    load_merged(chain, narrow, rounded=True)
    torch.testing.assert_close(narrow[f"{UP}.weight"].float(), expected[f"{UP}.weight"], rtol=2**-7, atol=2**-7)
    plain = [save(tmp_path / "without", WEIGHTS | own, {"config": {}})]
    assert all(torch.equal(tensor, WEIGHTS[name]) for name, tensor in read_merged(plain, WEIGHTS))


def chain_of_three(root: Path) -> dict[str, torch.Tensor]:
    """Runs `base`, `first` (adapters on `up`, of `base`) and `second` (adapters on both, of `first`, and a trained
    norm). Returns the weights of the last model."""
    base = save(root / "base", WEIGHTS, {"config": {}})
    of_first, of_second = adapters(UP, 1), adapters(UP, 2) | adapters(DOWN, 3)
    first = save(root / "first", of_first, {**ADAPTER, "base": reference_to(base, root / "first")})
    norm = {NORM: torch.ones(4)}
    save(root / "second", of_second | norm, {**ADAPTER, "base": reference_to(first, root / "second")})
    return {
        f"{UP}.weight": WEIGHTS[f"{UP}.weight"] + product(of_first, UP) + product(of_second, UP),
        f"{DOWN}.weight": WEIGHTS[f"{DOWN}.weight"] + product(of_second, DOWN),
        **norm,
    }


def test_a_checkpoint_of_adapters_is_read_with_its_bases_wherever_all_move(process_group: None, tmp_path: Path) -> None:
    expected = chain_of_three(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    checkpoint = verify_checkpoint(tmp_path / "there" / "second" / "checkpoints" / "step-000000001")
    chain = with_bases(checkpoint)
    assert [each.path.parents[1].name for each in chain] == ["second", "first", "base"]
    loaded = {name: torch.empty_like(tensor) for name, tensor in WEIGHTS.items()}
    load_merged(chain, loaded)
    for name, tensor in read_merged(chain, WEIGHTS):
        torch.testing.assert_close(tensor, expected[name])
        assert torch.equal(tensor, loaded[name])
    with pytest.raises(ConfigError, match=r"holds no tensor 'model\.other'"):
        load_merged(chain, {"model.other": torch.empty(1)})
    with pytest.raises(ConfigError, match=r"holds no tensor 'model\.other'"):
        list(read_merged(chain, ["model.other"]))


def test_a_base_that_is_missing_or_another_is_refused(process_group: None, tmp_path: Path) -> None:
    chain_of_three(tmp_path)
    second = verify_checkpoint(tmp_path / "second" / "checkpoints" / "step-000000001")
    (tmp_path / "base").rename(tmp_path / "gone")
    with pytest.raises(
        ConfigError, match=r"first/checkpoints/\S+ holds adapters alone, and their base model is no more"
    ):
        with_bases(second)
    save(tmp_path / "base", {**WEIGHTS, NORM: torch.zeros(4)}, {"config": {}})
    with pytest.raises(ConfigError, match="put this checkpoint back there"):
        with_bases(second)
