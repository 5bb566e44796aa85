"""Adapters of a checkpoint, merged into whole weights and into shards. test_adapter.py has whole runs."""

from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from gpt.training.config import Retention
from parallel.adapters.merge import merge_saved_adapters
from parallel.checkpoint.handle import verify_checkpoint
from parallel.checkpoint.save import save_checkpoint

NAME = "model.blocks.0.mlp.up"


def test_only_projections_with_adapters_change(process_group: None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight, other, norm = torch.randn(6, 4), torch.randn(4, 6), torch.randn(4)
    a, b = torch.randn(2, 4), torch.randn(6, 2)
    tensors = {f"{NAME}.weight": weight, f"{NAME}.adapter.a": a, f"{NAME}.adapter.b": b}
    tensors |= {"model.blocks.0.mlp.down.weight": other, "model.norm.weight": norm}
    found = {}
    for step, adapter in ((1, {"rank": 2, "alpha": 3.0}), (2, None)):
        state: dict[str, object] = {"config": {} if adapter is None else {"adapter": adapter}}
        path = save_checkpoint(tmp_path, step=step, tensors=tensors, state=state, keep=Retention(2))
        found[step] = verify_checkpoint(path)
    loaded = {name: tensors[name].clone() for name in tensors if ".adapter." not in name}
    merge_saved_adapters(found[1], loaded)
    expected = weight + 1.5 * b @ a
    torch.testing.assert_close(loaded[f"{NAME}.weight"], expected)
    assert torch.equal(loaded["model.blocks.0.mlp.down.weight"], other)
    assert torch.equal(loaded["model.norm.weight"], norm)
    sharded = distribute_tensor(weight.clone(), init_device_mesh("cpu", (1,), mesh_dim_names=("tp",)), [Shard(0)])
    merge_saved_adapters(found[1], {f"{NAME}.weight": sharded})
    torch.testing.assert_close(sharded.to_local(), expected)
    untouched = {f"{NAME}.weight": weight.clone()}
    merge_saved_adapters(found[2], untouched)
    assert torch.equal(untouched[f"{NAME}.weight"], weight)
