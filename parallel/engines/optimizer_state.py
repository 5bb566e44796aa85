"""An engine's optimizer and the tensors that it keeps, allocated on first use."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gpt.training.optimizer import OptimizerConfig, build_optimizer


class OptimizerState:
    """The optimizer over this rank's shards. Without `config` there is none, and no parameter has state.

    State tensors exist from the first step, save or load on: an engine that only evaluates never pays for them.
    """

    def __init__(self, parameters: Sequence[tuple[str, nn.Parameter]], config: OptimizerConfig | None) -> None:
        self.parameters = [parameter for _, parameter in parameters]
        self.names = () if config is None else config.state
        trainable = config is not None and any(parameter.requires_grad for parameter in self.parameters)
        self._optimizer = build_optimizer(parameters, config) if config is not None and trainable else None
        self._steps = 0

    def step(self, learning_rate: float) -> None:
        """Update the trainable parameters, each with its group's share of the learning rate."""
        self._steps += 1
        if self._optimizer is None:
            return  # everything that this rank holds is frozen
        self._allocate()
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_scale"]
        self._optimizer.step()

    def clear_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def tensors_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """The state tensors of a parameter by name, of its shape and sharding; none if it is frozen."""
        if self._optimizer is None or not parameter.requires_grad:
            return {}
        self._allocate()
        return {name: self._optimizer.state[parameter][name] for name in self.names}

    def all_tensors(self) -> list[Tensor]:
        """All state tensors, torch's own step counters included."""
        if self._optimizer is None:
            return []
        self._allocate()
        entries = self._optimizer.state.values()
        return [value for entry in entries for value in entry.values() if isinstance(value, Tensor)]

    @property
    def steps(self) -> int:
        """Updates so far, which Adam's bias correction needs."""
        return self._steps

    @steps.setter
    def steps(self, steps: int) -> None:
        self._steps = steps
        if self._optimizer is not None:
            self._allocate()
            for entry in self._optimizer.state.values():
                if "step" in entry:
                    entry["step"].fill_(steps)

    def _allocate(self) -> None:
        """Zeros for every trainable parameter, which is what torch's optimizers start from."""
        assert self._optimizer is not None
        if self._optimizer.state:
            return
        for parameter in self.parameters:
            if parameter.requires_grad:
                state = {name: torch.zeros_like(parameter) for name in self.names}
                if isinstance(self._optimizer, torch.optim.AdamW):
                    state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                self._optimizer.state[parameter] = state
