"""Megatron's optimizer over this rank's stages: its fp32 weights and moments, of which data ranks may hold parts."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gpt.training.optimizer import OptimizerConfig, decay_and_scale
from parallel.megatron.parameters import MegatronParameter
from parallel.megatron.sharding import gather_parts

MAIN = "main"


def build_megatron_optimizer(
    chunks: list[nn.Module],
    parameters: Sequence[MegatronParameter],
    config: OptimizerConfig,
    *,
    shards: bool,
    bf16: bool,
) -> Any:
    """Megatron's optimizer: AdamW with fp32 weights. `shards`: data ranks share its state out. Every rank must call it.

    Each torch group has `lr_scale`, a factor of the scheduled learning rate.
    """
    from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
    from megatron.core.optimizer import get_megatron_optimizer
    from megatron.core.optimizer.optimizer_config import ParamKey, ParamPredicate

    groups: dict[tuple[float, float], set[nn.Parameter]] = {}
    for one in parameters:
        settings = {decay_and_scale(name, one.parameter.dim(), config) for name in one.entry.names}
        assert len(settings) == 1, f"{one.name}: weights of one parameter with different settings"
        groups.setdefault(settings.pop(), set()).add(one.parameter)

    def belongs(members: set[nn.Parameter]) -> Callable[[Tensor], bool]:
        return lambda parameter: parameter in members

    overrides = {
        ParamKey(predicate=ParamPredicate(f"decay {decay}, lr {scale}", belongs(members))): {
            "weight_decay": decay,
            "lr_scale": scale,
        }
        for (decay, scale), members in groups.items()
    }
    options = MegatronOptimizerConfig(
        optimizer="adam",
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        adam_beta1=config.beta1,
        adam_beta2=config.beta2,
        adam_eps=config.eps,
        bf16=bf16,
        params_dtype=torch.bfloat16 if bf16 else torch.float32,
        use_distributed_optimizer=shards,
        clip_grad=0.0,  # the engine clips
    )
    return get_megatron_optimizer(options, chunks, config_overrides=overrides, use_gloo_process_groups=False)


class ParameterState:
    """The fp32 weights and moments of this rank's parameters, and the number of updates so far.

    `optimizer` None: nothing is trained, and bf16 parameters have fp32 weights here. `data_group`: the data ranks of
    this stage. Without the distributed optimizer, each of them holds everything.
    """

    def __init__(
        self, parameters: Sequence[MegatronParameter], optimizer: Any, *, data_group: dist.ProcessGroup
    ) -> None:
        self._group = data_group
        self._optimizer = None if optimizer is None else optimizer.chained_optimizers[0]
        self._sharded = hasattr(self._optimizer, "gbuf_ranges")
        if self._optimizer is None:
            self._main = {p.parameter: _fp32(p.parameter) for p in parameters}
        else:
            self._main = _main_weights(self._optimizer)
        self.moments: tuple[str, ...] = () if optimizer is None else ("exp_avg", "exp_avg_sq")
        self._steps = 0

    @property
    def copies(self) -> int:
        """The data ranks that hold each element of the optimizer's weights."""
        return 1 if self._sharded else dist.get_world_size(self._group)

    def read(self, parameter: nn.Parameter, key: str) -> Tensor:
        """A tensor of the parameter's shape, fp32: its weights (`MAIN`) or a moment. Collective over the data ranks.

        It may be the stored tensor itself.
        """
        if key == MAIN and parameter.dtype == torch.float32:
            return parameter.detach()  # every data rank holds it whole
        held = self._held(parameter, key)
        if not self._sharded:
            whole: Tensor = held.view_as(parameter)
            return whole
        if held is None:
            held = torch.empty(0, device=parameter.device)
        return gather_parts(held, self._sizes(parameter), self._group).view_as(parameter)

    def read_gradient(self, parameter: nn.Parameter) -> Tensor:
        """The gradient, fp32, after Megatron has finished it. Collective over the data ranks."""
        gradient: Tensor = parameter.main_grad  # type: ignore[attr-defined]
        if not self._sharded:
            return gradient
        sizes, rank = self._sizes(parameter), dist.get_rank(self._group)  # a data rank has summed up only its part
        start = sum(sizes[:rank])
        part = gradient.view(-1)[start : start + sizes[rank]]
        return gather_parts(part, sizes, self._group).view_as(gradient)

    @torch.no_grad()
    def write(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        """Take over a tensor of the parameter's shape. Weights also replace the parameter, rounded to its dtype."""
        if key == MAIN:
            parameter.copy_(value)
        held = self._held(parameter, key)
        if held is not None and held.numel():
            start = self._start(parameter) if self._sharded else 0
            held.view(-1).copy_(value.reshape(-1)[start : start + held.numel()])

    def step(self, learning_rate: float) -> None:
        """Update the weights with the gradients that Megatron has prepared."""
        assert self._optimizer is not None
        self._allocate()
        self._steps += 1
        for group in self._groups():
            group["lr"] = learning_rate * group["lr_scale"]
        self._optimizer.step_with_ready_grads()

    @property
    def steps(self) -> int:
        """Updates so far, which Adam's bias correction needs."""
        return self._steps

    @steps.setter
    def steps(self, steps: int) -> None:
        self._steps = steps
        self._allocate()
        for group in self._groups():
            if "step" in group:  # Transformer Engine's optimizer counts here, torch's for each parameter
                group["step"] = steps
        for entry in self._entries().values():
            if "step" in entry:
                entry["step"].fill_(steps)

    @property
    def held_keys(self) -> tuple[str, ...]:
        """The tensors that every data rank holds whole in addition to the parameter: moments, and fp32 weights."""
        if self._sharded or self._optimizer is None:
            return ()
        return (
            self.moments if all(main is parameter for parameter, main in self._main.items()) else (MAIN, *self.moments)
        )

    def held_tensors(self, parameter: nn.Parameter) -> list[Tensor]:
        """The stored tensors of `held_keys`."""
        return [self._held(parameter, key).detach() for key in self.held_keys]

    def _held(self, parameter: nn.Parameter, key: str) -> Any:
        """This rank's elements of a tensor, flat if data ranks share it out; None if it has none of them."""
        main = self._main.get(parameter)
        if key == MAIN or main is None:
            return main
        self._allocate()
        return self._entries()[main][key]

    def _entries(self) -> dict[Any, dict[str, Any]]:
        inner = None if self._optimizer is None else self._optimizer.optimizer
        return {} if inner is None else inner.state

    def _groups(self) -> list[dict[str, Any]]:
        inner = None if self._optimizer is None else self._optimizer.optimizer
        return [] if inner is None else inner.param_groups

    def _allocate(self) -> None:
        """Zero moments for every weight, which is what the optimizers start from."""
        if self._optimizer is None or self._entries():
            return
        counts_in_state = isinstance(self._optimizer.optimizer, torch.optim.AdamW)
        for group in self._groups():
            for weight in group["params"]:
                state = {key: torch.zeros_like(weight) for key in self.moments}
                if counts_in_state:
                    state["step"] = torch.zeros((), dtype=torch.float32)
                self._entries()[weight] = state
            if not counts_in_state:
                group.setdefault("step", 0)

    def _sizes(self, parameter: nn.Parameter) -> list[int]:
        """The number of a parameter's elements that each data rank holds, in order."""
        begin, end, bucket = self._position(parameter)
        ranks = dist.get_world_size(self._group)
        share = bucket.grad_data.numel() // ranks
        cuts = [min(max(bucket.offset + share * rank, begin), end) for rank in range(ranks + 1)]
        return [stop - start for start, stop in pairwise(cuts)]

    def _start(self, parameter: nn.Parameter) -> int:
        return sum(self._sizes(parameter)[: dist.get_rank(self._group)])

    def _position(self, parameter: nn.Parameter) -> tuple[int, int, Any]:
        """Where a parameter lies in Megatron's buffer: first index, index after the last, and the bucket."""
        assert self._optimizer is not None
        for buffer in self._optimizer.buffers:
            if parameter in buffer.param_index_map:
                begin, end, bucket = buffer.param_index_map[parameter]
                return begin, end, buffer.buckets[bucket]
        raise AssertionError("a parameter outside Megatron's buffers")


def _fp32(parameter: nn.Parameter) -> Tensor:
    """The parameter itself if it is fp32, or an fp32 copy."""
    return parameter.detach().float()


def _main_weights(optimizer: Any) -> dict[Any, Any]:
    """The fp32 weight that Megatron's optimizer updates for each parameter, or this data rank's part of it."""
    pairs: tuple[tuple[Any, Any], ...]
    if hasattr(optimizer, "gbuf_ranges"):
        pairs = (
            (optimizer.model_fp32_groups, optimizer.shard_fp32_groups),
            (optimizer.model_float16_groups, optimizer.shard_fp32_from_float16_groups),
        )
    elif hasattr(optimizer, "fp32_from_float16_groups"):
        pairs = (
            (optimizer.fp32_from_fp32_groups, optimizer.fp32_from_fp32_groups),
            (optimizer.float16_groups, optimizer.fp32_from_float16_groups),
        )
    else:
        held = [group["params"] for group in optimizer.param_groups]
        pairs = ((held, held),)
    return {
        parameter: main
        for parameters, mains in pairs
        for members, of_members in zip(parameters, mains, strict=True)
        for parameter, main in zip(members, of_members, strict=True)
    }
