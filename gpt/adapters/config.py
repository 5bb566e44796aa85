"""The [adapter] section of a recipe, and the names and shapes of the adapters that it asks for. Needs no torch."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, Literal

from gpt.errors import ConfigError
from gpt.model.config import ModelConfig

BASE = "base"  # key in the state of a checkpoint that holds adapters alone: its base model
_MARK = ".adapter."  # in the names of an adapter's parameters: blocks.0.attention.q.adapter.a


@dataclass(frozen=True)
class AdapterConfig:
    """The [adapter] section of a recipe: low-rank adapters (LoRA) train, and the base model is frozen.

    Each target, a projection y = W x, becomes y = W x + scale * B A x with A (rank, in) and B (out, rank).
    """

    kind: Literal["lora"] = "lora"
    """Low-rank adapters (LoRA, arXiv 2106.09685)."""
    rank: int = 16
    """Rows of each A and columns of each B."""
    alpha: float = 32.0
    """The adapters' output is multiplied by alpha / rank."""
    targets: tuple[str, ...] = ("blocks.*.attention.*", "blocks.*.mlp.*")
    """Patterns of names of projections: `blocks.N.attention.` q, k, v or out, `blocks.N.mlp.` gate, up or down. All of
    them by default, as in QLoRA (arXiv 2305.14314)."""
    rank_stabilized: bool = False
    """Multiply the adapters' output by alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732)."""
    also_train: tuple[str, ...] = ()
    """Patterns of names of parameters of the base model that train too, such as 'norm.*'. An end that the objective
    brings, such as a scalar head, always trains."""
    save_base: bool = True
    """Whether checkpoints hold the base model too. Without it, they name the checkpoint of `run.start_from` by its
    digest, and need it."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"adapter.rank = {self.rank} is invalid: must be at least 1")
        if not 0 < self.alpha < float("inf"):
            raise ConfigError(f"adapter.alpha = {self.alpha} is invalid: must be a number above 0")
        if not self.targets:
            raise ConfigError(
                "adapter.targets = [] is invalid: name at least one pattern, such as 'blocks.*.attention.q'"
            )

    @property
    def scale(self) -> float:
        """The factor of B A."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    def has_target(self, projection: str) -> bool:
        """Return whether a projection, such as 'blocks.0.attention.q', gets an adapter."""
        return any(fnmatchcase(projection, pattern) for pattern in self.targets)

    def trains(self, name: str) -> bool:
        """Return whether a parameter trains: one of an adapter, or one of the base model that `also_train` names."""
        return is_adapter(name) or any(fnmatchcase(name, pattern) for pattern in self.also_train)


def is_adapter(name: str) -> bool:
    """Return whether a name is that of an adapter's parameter, with or without a prefix."""
    return _MARK in name


def adapter_names(weight: str) -> tuple[str, str]:
    """The names of A and B for the name of a projection's weight, with or without a prefix."""
    projection = weight.removesuffix(".weight")
    return f"{projection}{_MARK}a", f"{projection}{_MARK}b"


def projections(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """Every projection that can have an adapter, with its shape (out, in)."""
    d, kv_width = model.d_model, model.kv_heads * model.d_head
    block = {"attention.q": (d, d), "attention.k": (kv_width, d), "attention.v": (kv_width, d), "attention.out": (d, d)}
    if model.activation == "swiglu":
        block["mlp.gate"] = (model.ff_width, d)
    block |= {"mlp.up": (model.ff_width, d), "mlp.down": (d, model.ff_width)}
    return {f"blocks.{i}.{part}": shape for i in range(model.n_layers) for part, shape in block.items()}


def adapter_shapes(model: ModelConfig, adapter: AdapterConfig | None) -> dict[str, tuple[int, ...]]:
    """The adapters' parameters by name, with their shapes; none without an adapter."""
    if adapter is None:
        return {}
    shapes: dict[str, tuple[int, ...]] = {}
    for projection, (rows, columns) in projections(model).items():
        if adapter.has_target(projection):
            a, b = adapter_names(projection)
            shapes |= {a: (adapter.rank, columns), b: (rows, adapter.rank)}
    return shapes


def adapter_parameters(model: ModelConfig, adapter: AdapterConfig) -> int:
    """The number of parameters of all adapters."""
    return sum(math.prod(shape) for shape in adapter_shapes(model, adapter).values())


def train_flops_per_token(model: ModelConfig, adapter: AdapterConfig | None, seq_len: int) -> float:
    """Floating-point operations of forward and backward for one token, see ModelConfig.train_flops_per_token."""
    if adapter is None:
        return model.train_flops_per_token(seq_len)
    return model.train_flops_per_token(seq_len, frozen=True) + 6.0 * adapter_parameters(model, adapter)


def check_adapter(model: ModelConfig, adapter: AdapterConfig) -> None:
    """ConfigError if a pattern matches no projection, or the rank exceeds a side of a matching projection."""
    found = projections(model)
    for i, pattern in enumerate(adapter.targets):
        if not any(fnmatchcase(name, pattern) for name in found):
            parts = dict.fromkeys(name.split(".", 2)[2] for name in found)
            raise ConfigError(
                f"adapter.targets[{i}] = '{pattern}' is invalid: it matches no projection. Projections are: "
                + ", ".join(f"blocks.*.{part}" for part in parts)
            )
    narrow = min((min(shape), name) for name, shape in found.items() if adapter.has_target(name))
    if adapter.rank > narrow[0]:
        shape = " x ".join(map(str, found[narrow[1]]))
        raise ConfigError(
            f"adapter.rank = {adapter.rank} is invalid: {narrow[1]} is {shape}, so its rank is at most {narrow[0]}. "
            f"Use {narrow[0]} or less"
        )


def check_also_train(names: Iterable[str], adapter: AdapterConfig) -> None:
    """ConfigError if a pattern of `adapter.also_train` matches no parameter of the model."""
    names = list(names)
    for i, pattern in enumerate(adapter.also_train):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"adapter.also_train[{i}] = '{pattern}' is invalid: it matches no parameter. Use for example 'norm.*'"
            )


def adapter_of(state: Mapping[str, Any]) -> AdapterConfig | None:
    """The adapter in a checkpoint's state; None if it has none. ConfigError: the section is invalid."""
    config = state.get("config")
    table = config.get("adapter") if isinstance(config, Mapping) else None
    if table is None:
        return None
    known = {field.name: type(field.default) for field in fields(AdapterConfig)}
    if not isinstance(table, Mapping) or not known.keys() >= table.keys():
        raise ConfigError("the configuration in the checkpoint has an invalid section [adapter]")
    values: dict[str, Any] = {
        key: tuple(map(str, value)) if isinstance(value, (list, tuple)) else value for key, value in table.items()
    }
    for key, value in values.items():
        if type(value) is not known[key] and not (known[key] is float and type(value) is int):
            raise ConfigError(f"the configuration in the checkpoint has an invalid value: adapter.{key} = {value!r}")
    return AdapterConfig(**values)
