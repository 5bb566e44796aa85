"""The optimizer of a run: its settings, parameter groups and frozen parameters."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from gpt.errors import ConfigError

if TYPE_CHECKING:  # the launcher of ranks reads a recipe without torch, whose import takes seconds
    import torch
    from torch import nn

# The tensors that each kind keeps for a parameter, under torch's names. Checkpoints store them by these names.
STATE = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with settings of their own."""

    parameters: tuple[str, ...]
    """Patterns of parameter names, such as 'blocks.*.mlp.*' or 'head.*'."""
    lr_scale: float = 1.0
    """Factor of the scheduled learning rate."""
    weight_decay: float | None = None
    """Weight decay of the group. That of `optimizer.weight_decay` by default."""

    def __post_init__(self) -> None:
        if not self.parameters:
            raise ConfigError("optimizer.groups: parameters is empty; name at least one pattern, such as 'head.*'")
        if not 0 <= self.lr_scale < float("inf"):
            raise ConfigError(f"optimizer.groups: lr_scale = {self.lr_scale} is invalid: it must be 0 or more")
        if self.weight_decay is not None and not 0 <= self.weight_decay < float("inf"):
            raise ConfigError(f"optimizer.groups: weight_decay = {self.weight_decay} is invalid: it must be 0 or more")


@dataclass(frozen=True)
class OptimizerConfig:
    """The [optimizer] section of a recipe. The defaults are GPT-3's (arXiv 2005.14165, appendix B)."""

    learning_rate: float = field(metadata={"rule": True})
    """Peak learning rate, which the schedule scales. By default it follows from the model's parameters: table 2.1 of
    GPT-3, interpolated in the logarithms; smaller models continue its trend, up to 6e-3. With `run.start_from` or sgd
    it has no default."""
    kind: Literal["adamw", "sgd"] = "adamw"
    """AdamW (GPT-3, arXiv 2005.14165, appendix B), or stochastic gradient descent with momentum."""
    beta1: float = 0.9
    """Decay of AdamW's mean of gradients."""
    beta2: float = 0.95
    """Decay of AdamW's mean of squared gradients."""
    eps: float = 1e-8
    """Added to AdamW's denominator."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices. Vectors have none."""
    max_gradient_norm: float = 1.0
    """Gradients of a larger norm are scaled down to it."""
    frozen: tuple[str, ...] = ()
    """Patterns of names of parameters that are never updated and get no gradient."""
    groups: tuple[ParameterGroup, ...] = ()
    """Parameters with settings of their own. The first group with a matching pattern applies."""

    def __post_init__(self) -> None:
        for key in ("learning_rate", "eps", "max_gradient_norm"):
            if not 0 < getattr(self, key) < float("inf"):
                raise ConfigError(f"optimizer.{key} = {getattr(self, key)} is invalid: must be a number above 0")
        for key in ("beta1", "beta2", "momentum"):
            if not 0.0 <= getattr(self, key) < 1.0:
                raise ConfigError(f"optimizer.{key} = {getattr(self, key)} is invalid: must lie in [0, 1)")
        if not 0 <= self.weight_decay < float("inf"):
            raise ConfigError(f"optimizer.weight_decay = {self.weight_decay} is invalid: must not be negative")

    @property
    def state(self) -> tuple[str, ...]:
        """The names of the tensors that the optimizer keeps for each parameter."""
        return STATE[self.kind]


def is_frozen(name: str, config: OptimizerConfig) -> bool:
    """Return whether `optimizer.frozen` names this parameter."""
    return any(fnmatchcase(name, pattern) for pattern in config.frozen)


def check_patterns(names: Sequence[str], config: OptimizerConfig, *, trained: Sequence[str] | None = None) -> None:
    """ConfigError if a pattern matches no parameter of the whole model, or if every parameter is frozen.

    `trained`: the parameters that train unless they are frozen; None: all.
    """
    patterns = {f"optimizer.frozen[{i}]": pattern for i, pattern in enumerate(config.frozen)}
    for i, group in enumerate(config.groups):
        patterns |= {f"optimizer.groups[{i}].parameters[{j}]": p for j, p in enumerate(group.parameters)}
    for key, pattern in patterns.items():
        if not any(fnmatchcase(name, pattern) for name in names):
            known = ", ".join(dict.fromkeys(_general(name) for name in names))
            tied = ". A tied model has no head.weight: it is tied to embed.tokens.weight"
            hint = tied if fnmatchcase("head.weight", pattern) and "embed.tokens.weight" in names else ""
            raise ConfigError(f"{key} = '{pattern}' is invalid: it matches no parameter. Names are: {known}{hint}")
    if all(is_frozen(name, config) for name in (names if trained is None else trained)):
        raise ConfigError(f"optimizer.frozen = {list(config.frozen)} is invalid: it leaves no parameter to train")


def _general(name: str) -> str:
    """A name with its block number replaced: all blocks have the same parameters."""
    head, *rest = name.split(".")
    return ".".join([head, "*", *rest[1:]]) if head == "blocks" else name


def build_optimizer(
    parameters: "Iterable[tuple[str, nn.Parameter]]", config: OptimizerConfig
) -> "torch.optim.Optimizer":
    """The optimizer over the trainable of these named parameters. Matrices decay, biases and norm weights do not.

    Each torch group has `lr_scale`, a factor of the scheduled learning rate.
    """
    import torch

    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        if parameter.requires_grad and not is_frozen(name, config):
            groups.setdefault(decay_and_scale(name, parameter.dim(), config), []).append(parameter)
    tables: list[dict[str, Any]] = [
        {"params": members, "weight_decay": decay, "lr_scale": scale} for (decay, scale), members in groups.items()
    ]
    if config.kind == "sgd":
        return torch.optim.SGD(tables, lr=config.learning_rate, momentum=config.momentum, foreach=True)
    return torch.optim.AdamW(
        tables, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
    )


def decay_and_scale(name: str, dimensions: int, config: OptimizerConfig) -> tuple[float, float]:
    """Weight decay and learning-rate scale of a parameter of so many dimensions."""
    decay = config.weight_decay if dimensions >= 2 else 0.0
    for group in config.groups:
        if any(fnmatchcase(name, pattern) for pattern in group.parameters):
            return decay if group.weight_decay is None else group.weight_decay, group.lr_scale
    return decay, 1.0
