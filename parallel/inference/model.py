"""A model that lies over tensor and pipeline ranks, as generation and evaluation ask it; chooses no token.

Every rank runs its stages on the same tokens, with a key-value cache of its own layers and heads. Hidden states go from
stage to stage by messages; what the last stage finds is sent to all ranks, which therefore choose the same tokens.
Shapes as in gpt/inference/model.py; t' is t rounded up to a multiple of tensor ranks, r = t' / tensor.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from gpt.inference.kv_cache import KeyValueCache
from gpt.inference.model import ForwardInputs
from gpt.losses.next_token import loss_for
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT, LayerCache
from parallel.agreement import exchange
from parallel.axes.pipeline_parallel import pass_through
from parallel.axes.stage import CachedStep, Stage, canonical_parameters
from parallel.axes.tensor_parallel import apply_tensor_parallel
from parallel.checkpoint import find as checkpoint
from parallel.layout.mesh import Mesh


@dataclass(frozen=True)
class _WithoutPadding:
    """A cache that takes the first `length` of the positions it is given."""

    cache: LayerCache
    length: int

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.cache.append(k[:, :, : self.length], v[:, :, : self.length])


class DistributedModel:
    """See gpt.inference.model.InferenceModel: the same methods over a layout, called by every rank in the same order.

    `data_ranks_together`: data ranks need each other to compute, as under ZeRO 3, so they do the same and count as one.
    """

    def __init__(
        self,
        stages: list[Stage],
        mesh: Mesh,
        *,
        d_model: int,
        dtype: torch.dtype,
        data_ranks_together: bool = False,
    ) -> None:
        self.d_model = d_model
        self.stages = dict(zip(mesh.stages, stages, strict=True))
        self.mesh = mesh
        self.dtype = dtype
        self.device = mesh.device
        self.vocab_size = stages[0].model.vocab_size
        self.last = mesh.layout.stages - 1
        self.together = data_ranks_together
        self.data_rank, self.data_size = (0, 1) if data_ranks_together else (mesh.data_rank, mesh.layout.data)

    def gather(self, values: list[Any]) -> list[list[Any]]:
        if self.data_size == 1:
            return [values]
        everyone = exchange(values, None)
        return [everyone[self.mesh.peer_of(data_rank)] for data_rank in range(self.data_size)]

    def make_cache(self, capacity: int) -> dict[str, KeyValueCache]:
        return {name: KeyValueCache(capacity) for stage in self.stages.values() for name in stage.model.blocks}

    def next_logits(self, inputs: ForwardInputs, *, places: Tensor | None = None) -> Tensor:
        """Logits (n, v) fp32 after tokens (b, t). A message (b, r, d) between stages, a broadcast of the logits."""
        if places is None:
            rows, length = inputs.tokens.shape
            places = torch.arange(1, rows + 1, device=self.device) * length - 1
        step = CachedStep(inputs.positions, inputs.mask, inputs.cache, places)
        return self._broadcast(self._read(inputs.tokens, inputs.earlier, step), (places.numel(), self.vocab_size))

    def log_probs(self, inputs: ForwardInputs, *, places: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """See gpt.inference.model.InferenceModel. Messages of (b, r, d) in all between stages, a broadcast of two
        numbers for each target. Without a cache the rows go through a pipeline in parts, so that its stages work at the
        same time."""
        step = CachedStep(inputs.positions, inputs.mask, inputs.cache, places, targets)
        parts = 2 * self.mesh.layout.pipeline if inputs.cache is None and self.mesh.layout.pipeline > 1 else 1
        found = [self._read(some, inputs.earlier, its_step) for some, its_step in _by_rows(inputs.tokens, step, parts)]
        with torch.inference_mode(False):
            output = torch.cat(found, dim=1) if self.last in self.stages else found[0]
        log_probs, greedy = self._broadcast(output, (2, targets.numel())).unbind()
        return log_probs, greedy > 0

    def _read(self, tokens: Tensor, earlier: int, step: CachedStep) -> Tensor:
        """What the last stage finds, where this rank has it; else what its last stage hands on."""
        length = tokens.size(1)
        extra = -length % self.mesh.layout.tensor  # sequence parallelism needs equal shares
        with torch.inference_mode(False), torch.no_grad():  # FSDP keeps its buffers for training
            if extra:
                tokens = functional.pad(tokens, (0, extra))
                step = _padded_step(step, earlier=earlier, length=length, extra=extra)
            shape = (tokens.size(0), tokens.size(1) // self.mesh.layout.tensor, self.d_model)
            message = torch.empty(shape, dtype=self.dtype, device="meta")
            return pass_through(
                self.stages, self.mesh, tokens, message, lambda index, x: self.stages[index](x, step=step)
            )

    def _broadcast(self, output: Tensor, shape: tuple[int, ...]) -> Tensor:
        """From the last stage to the others. All its tensor ranks have the same bits, gathered of the same parts. Data
        ranks that work together get one's: if they differed in a bit, they could part ways and wait for ever."""
        with torch.inference_mode(False), torch.no_grad():
            if not math.prod(shape):  # the tokens were only to be cached
                return torch.empty(shape, device=self.device)
            if self.last in self.stages:
                found = output.float().contiguous()
            else:
                found = torch.empty(shape, dtype=torch.float32, device=self.device)
            if self.together:
                dist.broadcast(found, src=int(self.mesh.whole.mesh[self.mesh.layout.rank_of(self.last), 0, 0, 0]))
            elif self.mesh.layout.pipeline > 1:
                dist.broadcast(found, src=self.mesh.global_rank_of(self.last), group=self.mesh.pipeline_group)
            return found


def _by_rows(tokens: Tensor, step: CachedStep, parts: int) -> Iterator[tuple[Tensor, CachedStep]]:
    """A step that needs no cache as up to so many, each of about equally many rows."""
    rows, length = tokens.shape
    size = -(-rows // min(parts, rows))
    if size == rows:
        yield tokens, step
        return
    assert step.targets is not None
    for start in range(0, rows, size):
        own = slice(start, start + size)
        asked = (step.places >= start * length) & (step.places < (start + size) * length)
        yield (
            tokens[own],
            CachedStep(
                positions=step.positions if step.positions.size(0) == 1 else step.positions[own],
                mask=step.mask if step.mask is None or step.mask.size(0) == 1 else step.mask[own],
                cache=None,
                places=step.places[asked] - start * length,
                targets=step.targets[asked],
            ),
        )


def _padded_step(step: CachedStep, *, earlier: int, length: int, extra: int) -> CachedStep:
    """The same step for `extra` tokens more in each row, which are not cached and not asked."""
    cache: Mapping[str, LayerCache] | None = step.cache
    if cache is not None:
        cache = {name: _WithoutPadding(layer, length) for name, layer in cache.items()}
    return CachedStep(
        positions=torch.cat((step.positions, step.positions[:, -1:].expand(-1, extra)), dim=1),
        mask=_padded_mask(step, earlier=earlier, length=length, extra=extra),
        cache=cache,
        places=step.places + step.places // length * extra,
        targets=step.targets,
    )


def _padded_mask(step: CachedStep, *, earlier: int, length: int, extra: int) -> Tensor | None:
    """A mask for `extra` queries more, which look everywhere: nobody reads what they see. Keys are added where no cache
    leaves them out, and nobody else looks at those."""
    if step.cache is None:
        return (
            None
            if step.mask is None
            else functional.pad(functional.pad(step.mask, (0, extra)), (0, 0, 0, extra), value=True)
        )
    mask = step.mask
    if mask is None:
        places = torch.arange(earlier + length, device=step.positions.device)
        mask = (places <= places[earlier:, None])[None, None]  # (1, 1, t, s)
    return mask if mask.size(2) == 1 else functional.pad(mask, (0, 0, 0, extra), value=True)


def load_distributed_model(
    path: Path, config: ModelConfig, mesh: Mesh, *, dtype: torch.dtype, verified: bool = False
) -> DistributedModel:
    """The weights of a checkpoint of any layout, rounded to `dtype`, as a model over `mesh`, without gradients.

    Collective over all ranks. Memory of a rank: its share of the weights, and one tensor more. Errors as for
    `checkpoint.load`.
    """
    stages = [_build_stage(config, mesh, index=index, dtype=dtype) for index in mesh.stages]
    weights = {f"model.{name}": parameter.data for name, parameter in _parameters(stages)}
    checkpoint.load(path, tensors=weights, verified=verified, rounded=True)
    return DistributedModel(stages, mesh, d_model=config.d_model, dtype=dtype)


def _build_stage(config: ModelConfig, mesh: Mesh, *, index: int, dtype: torch.dtype) -> Stage:
    """One pipeline stage, its parameters allocated and not filled."""
    layout = mesh.layout
    with torch.device("meta"):
        model = GPT(config, layout.layers_of(index), first=index == 0, last=index == layout.stages - 1)
    if layout.tensor > 1:
        apply_tensor_parallel(model, config, mesh.tensor)
    model.to(dtype).to_empty(device=mesh.device)
    model.tie()  # allocating made two of a shared weight
    return Stage(model.eval().requires_grad_(False), loss_for(compile=False))


def _parameters(stages: list[Stage]) -> Iterator[tuple[str, nn.Parameter | Tensor]]:
    for stage in stages:
        yield from canonical_parameters(stage)
