"""Our weights for converters: names and shapes without vocabulary padding, grouped as other libraries do."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from gpt.errors import ConfigError
from gpt.files.safetensors import TensorSpec
from gpt.model.config import ModelConfig
from gpt.model.parameter_shapes import parameter_shapes


class JoinedEntry(Protocol):
    """A tensor of another library that joins one or more of our weights."""

    @property
    def names(self) -> tuple[str, ...]: ...


Entry = TypeVar("Entry", bound=JoinedEntry)

_BLOCK_ELEMENTS = 1 << 23


@dataclass(frozen=True)
class GivenWeights:
    """Weights that the caller hands over one at a time, to be converted to `dtype`; a TensorSource, read once."""

    config: ModelConfig
    tensors: Iterable[tuple[str, Tensor]]
    dtype: torch.dtype

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Names and shapes of the model's weights. The tensors may come in another order."""
        return {name: TensorSpec(shape, self.dtype) for name, shape in shapes(self.config).items()}

    def read(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights without vocabulary padding.

        ConfigError: a name that the model does not have, or a number that is not finite in `dtype`.
        """
        known = self.specs
        for name, tensor in self.tensors:
            if name not in known:
                raise ConfigError(f"the tensor '{name}' is unknown to this model")
            check_finite(name, tensor, where="the checkpoint")
            yield name, check_range(name, without_padding(self.config, name, tensor), self.dtype)
            del tensor  # this frame would keep it in memory while the next one is read


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return our parameters and their shapes, without vocabulary padding."""
    return {
        name: (config.vocab_size, *shape[1:]) if is_vocabulary(name) else shape
        for name, shape in parameter_shapes(config).items()
    }


def check_finite(name: str, tensor: Tensor, *, where: str) -> Tensor:
    """Return the tensor. ConfigError: it contains NaN or infinity. Memory: one block of rows."""
    rows = tensor.reshape(1) if tensor.dim() == 0 else tensor
    step = max(1, _BLOCK_ELEMENTS // max(1, math.prod(rows.shape[1:])))
    for i in range(0, rows.size(0), step):
        if not bool(torch.isfinite(rows[i : i + step]).all()):
            raise ConfigError(f"{where}: the tensor '{name}' contains NaN or infinity, so the model cannot work")
    return tensor


def check_range(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the finite tensor. ConfigError: a number is too large for `dtype`."""
    low, high = tensor.detach().aminmax() if tensor.numel() else (0.0, 0.0)
    if max(-float(low), float(high)) > torch.finfo(dtype).max:
        raise ConfigError(
            f"the tensor '{name}' has numbers too large for {str(dtype).removeprefix('torch.')}. Use --dtype float32."
        )
    return tensor


def is_vocabulary(name: str) -> bool:
    """Return whether the first dimension of this weight is the vocabulary, padding included."""
    return name in ("embed.tokens.weight", "head.weight")


def without_padding(config: ModelConfig, name: str, tensor: Tensor) -> Tensor:
    """Cut vocabulary padding off a weight that has it. Any other shape is left for the checks that follow."""
    if is_vocabulary(name) and tensor.size(0) == config.padded_vocab_size:
        return tensor[: config.vocab_size]
    return tensor


def check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> Tensor:
    """Return the tensor. ConfigError: it does not have the shape that this model needs."""
    if tuple(tensor.shape) != expected:
        raise ConfigError(f"the tensor '{name}' has shape {tuple(tensor.shape)}, but this model needs {expected}")
    return tensor


def joined_shape(names: Sequence[str], weight_shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape of these weights joined along the first dimension; `weight_shapes` as `shapes` returns it."""
    return (sum(weight_shapes[name][0] for name in names), *weight_shapes[names[0]][1:])


def collect(
    config: ModelConfig, entries: Iterable[Entry], tensors: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[Entry, list[Tensor]]]:
    """Group our weights, in any order, as `entries` join them, without vocabulary padding.

    Memory: only the weights of entries that are still incomplete. ConfigError: a tensor is missing, unknown, given
    twice or has another shape.
    """
    expected = shapes(config)
    entry_of = {name: entry for entry in entries for name in entry.names}
    waiting: dict[str, Tensor] = {}
    missing = set(entry_of)
    for name, tensor in tensors:
        take(name, missing, entry_of)
        waiting[name] = check_shape(name, without_padding(config, name, tensor), expected[name])
        del tensor  # this frame would keep it in memory while the next one is read
        entry = entry_of[name]
        if all(part in waiting for part in entry.names):
            yield entry, [waiting.pop(part) for part in entry.names]
    check_complete(missing)


def take(name: str, missing: set[str], known: Iterable[str]) -> None:
    """Remove a tensor that has come from the missing ones. ConfigError: it is unknown, or has come before."""
    if name not in missing:
        raise ConfigError(f"the tensor '{name}' is {'given twice' if name in known else 'unknown to this model'}")
    missing.remove(name)


def check_complete(missing: set[str]) -> None:
    """Check that all tensors have come. ConfigError: some have not."""
    if missing:
        raise ConfigError(f"{len(missing)} tensors of the model are missing, among them '{min(missing)}'")
