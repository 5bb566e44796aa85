"""Megatron's weights and optimizer state in the form of our checkpoints: native names, shapes and shards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parallel.megatron.optimizer import MAIN, ParameterState
from parallel.megatron.parameters import MegatronParameter


@dataclass(frozen=True)
class MegatronTensors:
    """See parallel.engines.checkpoints.SavedTensors. All tensors are copies, spread as the native engine spreads them.

    Memory: this rank's share of a checkpoint, and while a parameter is copied, its whole state on this tensor rank.
    """

    parameters: Sequence[MegatronParameter]
    state: ParameterState

    def by_name(self) -> dict[str, Tensor]:
        return self._copies((MAIN, *self.state.moments))

    def weights(self) -> dict[str, Tensor]:
        return self._copies((MAIN,))

    def with_steps(self, state: dict[str, object]) -> dict[str, object]:
        return {**state, "optimizer_steps": self.state.steps}

    @torch.no_grad()
    def finish_load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any] | None) -> None:
        """Copy loaded tensors into Megatron's. A weight that is not in `tensors` stays as it is."""
        for one in self.parameters:
            for key in (MAIN, *self.state.moments):
                names = [_saved_name(key, weight.name) for weight in one.weights]
                if not any(name in tensors for name in names):
                    continue
                parts = one.split(self.state.read(one.parameter, key))
                for i, (weight, name) in enumerate(zip(one.weights, names, strict=True)):
                    if name in tensors:
                        parts[i] = weight.gather_rows(tensors[name])
                self.state.write(one.parameter, key, one.join(parts))
        if state is not None:
            self.state.steps = int(state["optimizer_steps"])

    @torch.no_grad()
    def _copies(self, keys: tuple[str, ...]) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for one in self.parameters:
            for key in keys:
                parts = one.split(self.state.read(one.parameter, key))
                for weight, part in zip(one.weights, parts, strict=True):
                    tensors[_saved_name(key, weight.name)] = weight.on_data_ranks(part)
        return tensors


def _saved_name(key: str, name: str) -> str:
    return f"model.{name}" if key == MAIN else f"optimizer.{key}.{name}"
