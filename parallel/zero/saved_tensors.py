"""The tensors that the DeepSpeed engine saves: its fragments as DTensors over the data axis, gathered one at a time."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from parallel.axes.gradients import local, whole
from parallel.zero.fragments import Fragment, ZeroFragments


class ZeroTensors:
    """See parallel.engines.checkpoints.SavedTensors. Tensors are copies in host memory; a load writes them back."""

    def __init__(self, fragments: ZeroFragments) -> None:
        self._fragments = fragments

    def by_name(self) -> dict[str, Tensor]:
        tensors = self.weights()
        for fragment in self._fragments.all:
            for key, piece in self._fragments.state_of(fragment).items():
                tensors[f"optimizer.{key}.{fragment.name}"] = self._staged(fragment, piece)
        return tensors

    def weights(self) -> dict[str, Tensor]:
        return {f"model.{one.name}": self._staged(one, one.weight) for one in self._fragments.all}

    def with_steps(self, state: dict[str, object]) -> dict[str, object]:
        return {**state, "optimizer_steps": self._fragments.steps}

    @torch.no_grad()
    def finish_load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any] | None) -> None:
        """Write loaded tensors into the fragments, and the weights into those that compute."""
        for fragment in self._fragments.all:
            pieces = {f"model.{fragment.name}": fragment.weight}
            if state is not None:
                states = self._fragments.state_of(fragment)
                pieces |= {f"optimizer.{key}.{fragment.name}": piece for key, piece in states.items()}
            for name, piece in pieces.items():
                if name in tensors:
                    loaded = whole(tensors[name]).flatten()
                    piece.copy_(loaded.narrow(0, fragment.start, fragment.size))
        if state is not None:
            self._fragments.set_steps(int(state["optimizer_steps"]))
        self._fragments.update_compute_weights()

    @torch.no_grad()
    def _staged(self, fragment: Fragment, piece: Tensor) -> DTensor:
        """A copy in host memory, sharded over the data axis as FSDP shards. Collective over the data ranks."""
        mesh = self._fragments.mesh.data
        full = self._fragments.whole(fragment, piece)
        shard = local(distribute_tensor(full, mesh, [Shard(0)], src_data_rank=None)).to("cpu", copy=True)
        return DTensor.from_local(shard, mesh, [Shard(0)], run_check=False, shape=full.shape, stride=full.stride())
