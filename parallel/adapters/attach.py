"""Add low-rank adapters to the projections of a stage, sharded as the projections are, and freeze the base model.

A projection sharded by rows (q, k, v, gate, up) has its B sharded by rows and its A whole. One sharded by columns (out,
down) has its A sharded by columns and its B whole; a reduce-scatter adds up A x, which is `rank` wide, and B works on
this rank's share of the sequence. The gradient of a matrix that every tensor rank holds whole is a part of a sum, as
that of any such parameter: see parallel.axes.gradients.sum_partial_gradients.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Placement, Replicate, Shard, distribute_tensor
from torch.nn import functional

from gpt.adapters.config import AdapterConfig, projections
from gpt.adapters.low_rank import LowRankAdapter, add_adapter
from gpt.model.gpt import GPT, Embedding
from gpt.model.heads import VocabularyHead
from gpt.training.optimizer import OptimizerConfig, is_frozen
from parallel.axes.local_layers import LocalKeyValue, ReducedLinear
from parallel.axes.sequence_shards import TensorRanks
from parallel.axes.stage import canonical_name
from parallel.axes.tensor_parallel import KeyValueProjection, RowLinear


class RowAdapter(LowRankAdapter):
    """The adapter of a RowLinear: (b, t/tp, d) from (b, t, k/tp)."""

    ranks: TensorRanks

    def forward(self, x: Tensor) -> Tensor:
        share = self.ranks.reduced(functional.linear(x, self.a))  # (b, t/tp, r)
        return functional.linear(share, self.b) * self.scale


class ReducedAdapter(LowRankAdapter):
    """The adapter of a ReducedLinear, for inference: (b, t, d) on every rank from (b, t, k/tp)."""

    group: dist.ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        y = functional.linear(x, self.a)  # (b, t, r)
        dist.all_reduce(y, group=self.group)
        return functional.linear(y, self.b) * self.scale


class KeyValueAdapter(LowRankAdapter):
    """The adapter of a key or value projection whose heads tensor ranks do not divide: (b, t, m * d_head) from
    (b, t, d), for the heads of this rank's queries."""

    base: tuple[KeyValueProjection | LocalKeyValue]  # in a tuple, since a module would register another as its own

    def forward(self, x: Tensor) -> Tensor:
        (base,) = self.base
        y = functional.linear(functional.linear(x, self.a), self.b[base.rows])
        return base.repeated(y) * self.scale


def attach_adapters(model: GPT, adapter: AdapterConfig, mesh: DeviceMesh | None) -> None:
    """Add adapters to a part of a model on the meta device, after `apply_tensor_parallel` if it has tensor ranks.

    `mesh`: the tensor axis; None if this rank holds the projections whole.
    """
    shapes = projections(model.config)
    for path, layer in list(model.named_modules()):
        if path in shapes and adapter.has_target(path):
            one = _adapter_of(layer, shapes[path], rank=adapter.rank, scale=adapter.scale)
            if mesh is not None:
                a, b = _placements(layer)
                one.a, one.b = _distributed(one.a, mesh, a), _distributed(one.b, mesh, b)
            add_adapter(layer, one)


def attach_local_adapters(block: nn.Module, source: nn.Module) -> None:
    """Add to the layers of `block`, for inference on tensor ranks, the adapters that those of `source` have.

    Their parameters are set from outside, as plain tensors.
    """
    layers = dict(block.named_modules())
    for path, module in source.named_modules():
        if isinstance(module, LowRankAdapter):
            layer = layers[path.replace("_checkpoint_wrapped_module.", "").removesuffix(".adapter")]
            add_adapter(layer, _adapter_of(layer, (1, 1), rank=1, scale=module.scale))


def choose_trained(model: GPT, adapter: AdapterConfig | None, optimizer: OptimizerConfig | None) -> None:
    """Set which parameters of a stage need a gradient: those that the optimizer updates."""
    for name, parameter, trains in _named_trained(model, adapter):
        parameter.requires_grad_(optimizer is not None and trains and not is_frozen(name, optimizer))


def hold_base_in_bf16(model: GPT, adapter: AdapterConfig) -> None:
    """Hold the parameters of the base model in bf16, while they are on the meta device. It has no gradient to add up.

    Computing in bf16 rounds fp32 weights each time, so this changes no bit of a step.
    """
    frozen = {parameter for _, parameter, trains in _named_trained(model, adapter) if not trains}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter in frozen:
                module.register_parameter(name, nn.Parameter(parameter.detach().to(torch.bfloat16)))
    model.tie()  # a shared parameter became two


def _named_trained(model: GPT, adapter: AdapterConfig | None) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """Each parameter with its canonical name, and whether it trains unless the optimizer freezes it."""
    own_ends = tuple(
        f"{name}."
        for name, end, usual in (("embed", model.embed, Embedding), ("head", model.head, VocabularyHead))
        if end is not None and not isinstance(end, usual)
    )
    for own_name, parameter in model.named_parameters():
        name = canonical_name(own_name, model)
        yield name, parameter, adapter is None or adapter.trains(name) or name.startswith(own_ends)


def _adapter_of(layer: nn.Module, shape: tuple[int, int], *, rank: int, scale: float) -> LowRankAdapter:
    """The adapter for a layer of any kind, on the meta device."""
    rows, columns = shape
    with torch.device("meta"):
        if isinstance(layer, RowLinear):
            row = RowAdapter(rows, columns, rank=rank, scale=scale)
            row.ranks = layer.ranks
            return row
        if isinstance(layer, ReducedLinear):
            reduced = ReducedAdapter(rows, columns, rank=rank, scale=scale)
            reduced.group = layer.group
            return reduced
        if isinstance(layer, (KeyValueProjection, LocalKeyValue)):
            key_value = KeyValueAdapter(rows, columns, rank=rank, scale=scale)
            key_value.base = (layer,)
            return key_value
        return LowRankAdapter(rows, columns, rank=rank, scale=scale)


def _placements(layer: nn.Module) -> tuple[Placement, Placement]:
    """How tensor ranks hold A and B."""
    if isinstance(layer, RowLinear):
        return Shard(1), Replicate()
    return Replicate(), Replicate() if isinstance(layer, KeyValueProjection) else Shard(0)


def _distributed(parameter: nn.Parameter, mesh: DeviceMesh, placement: Placement) -> nn.Parameter:
    return nn.Parameter(distribute_tensor(parameter.detach(), mesh, [placement], src_data_rank=None))
