"""The native engine's weights and optimizer state, as its checkpoints name them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gpt.adapters.config import is_adapter
from parallel.axes.gradients import local
from parallel.engines.optimizer_state import OptimizerState


@dataclass(frozen=True)
class NativeTensors:
    """See parallel.engines.checkpoints.SavedTensors: the parameters themselves, and the optimizer's state of each."""

    parameters: list[tuple[str, nn.Parameter]]
    optimizer: OptimizerState
    tied_copies: list[nn.Parameter]  # of a tied weight, if the first and the last stage hold a copy each
    save_frozen: bool = True  # False: checkpoints hold the parameters that train, see adapter.save_base

    def by_name(self) -> dict[str, Tensor]:
        """A tied weight is held twice under one name and written once: the first stage's copy."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in reversed(self.parameters):
            if not (self.save_frozen or parameter.requires_grad or is_adapter(name)):
                continue
            tensors[f"model.{name}"] = parameter.data
            for key, tensor in self.optimizer.tensors_of(parameter).items():
                tensors[f"optimizer.{key}.{name}"] = tensor
        return tensors

    def weights(self) -> dict[str, Tensor]:
        """The parameters alone."""
        return {f"model.{name}": parameter.data for name, parameter in reversed(self.parameters)}

    def with_steps(self, state: dict[str, object]) -> dict[str, object]:
        """The state with the optimizer's step count, which `finish_load` restores."""
        return {**state, "optimizer_steps": self.optimizer.steps}

    def finish_load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any] | None) -> None:
        """Restore what is not in the tensors that were loaded, which are this engine's own."""
        self.equalise_tied_copies()
        if state is not None:
            self.optimizer.steps = int(state["optimizer_steps"])

    @torch.no_grad()
    def equalise_tied_copies(self) -> None:
        """On a rank with both copies (stages as a V), the second gets what a checkpoint had for the first."""
        if len(self.tied_copies) == 2:
            first, last = self.tied_copies
            states = (self.optimizer.tensors_of(copy).values() for copy in (last, first))
            for copy, original in ((last, first), *zip(*states, strict=True)):
                local(copy).copy_(local(original))
