"""Megatron's parameters of this rank, and our weights of which each is made."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from gpt.convert.megatron.names import EMBEDDING, HEAD, LAYERS, NORMS, MegatronEntry, join, split, table
from gpt.model.config import ModelConfig
from parallel.megatron.sharding import ShardedWeight


@dataclass(frozen=True)
class MegatronParameter:
    """A parameter of a GPTModel: this tensor rank's parts of `weights`, joined as `entry` says."""

    parameter: nn.Parameter
    config: ModelConfig
    entry: MegatronEntry
    weights: tuple[ShardedWeight, ...]

    @property
    def name(self) -> str:
        """The names of our weights, such as 'blocks.0.attention.q.weight+k.weight+v.weight'."""
        first, *others = self.entry.names
        return "+".join([first, *(".".join(name.rsplit(".", 2)[1:]) for name in others)])

    @property
    def tensor_dim(self) -> int | None:
        """The dimension that tensor ranks share out, or None."""
        return self.weights[0].tensor_dim

    def join(self, parts: list[Tensor]) -> Tensor:
        """A tensor of the parameter's shape from this tensor rank's parts of our weights."""
        return join(self.config, parts)

    def split(self, tensor: Tensor) -> list[Tensor]:
        """This tensor rank's parts of our weights from a tensor of the parameter's shape; views where possible."""
        return split(self.config, self.entry, tensor)


def megatron_parameters(
    model: nn.Module, config: ModelConfig, weights: dict[str, ShardedWeight], *, layers: range
) -> Iterator[MegatronParameter]:
    """The parameters of one stage, a plain GPTModel with the blocks `layers`. `weights`: those of the same stage."""
    entries = {(entry.megatron_name, entry.layer): entry for entry in table(config)}
    entries.setdefault((HEAD, None), entries[EMBEDDING, None])  # a tied head is a second copy of the embedding
    for name, parameter in model.named_parameters():
        entry = entries[_table_key(name, layers)]
        found = tuple(weights[part] for part in entry.names)
        assert all(one.tensor_dim == found[0].tensor_dim for one in found)
        yield MegatronParameter(parameter, config, entry, found)


def _table_key(name: str, layers: range) -> tuple[str, int | None]:
    """The key of a parameter in `table`, which counts blocks over the whole model and names fused norms."""
    if not name.startswith(LAYERS):
        return name, None
    local_layer, _, rest = name.removeprefix(LAYERS).partition(".")
    for norm, fused in NORMS.items():
        if rest.startswith(norm):
            rest = fused + rest.removeprefix(norm)
    return LAYERS + rest, layers[int(local_layer)]


def mark_tensor_axis(parameter: MegatronParameter) -> None:
    """Set the attributes by which Megatron finds the copies of a parameter on tensor ranks.

    It sets them only where it initialises a weight, which it does not do here. Its optimizer copies them when built.
    """
    dim = parameter.tensor_dim
    attributes = {
        "tensor_model_parallel": dim is not None,
        "partition_dim": -1 if dim is None else dim,
        "partition_stride": 1,
    }
    for key, value in attributes.items():
        setattr(parameter.parameter, key, value)
