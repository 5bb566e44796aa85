"""Generation by a model that lies over tensor and pipeline ranks, for gpt.generation's decoder; chooses no token.

Every rank runs its stages on the same tokens, with a key-value cache of its own layers and heads. Hidden states go from
stage to stage by messages; the last stage's logits are sent to all ranks, which therefore choose the same tokens.
Shapes as in gpt/generation.py; t' is t rounded up to a multiple of tensor ranks, r = t' / tensor.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from gpt.generation import KeyValueCache
from gpt.model import LayerCache
from parallel.mesh import Mesh
from parallel.pipeline_parallel import pass_through
from parallel.stage import CachedStep, Stage


@dataclass(frozen=True)
class _WithoutPadding:
    """A cache that takes the first `length` of the positions it is given."""

    cache: LayerCache
    length: int

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.cache.append(k[:, :, : self.length], v[:, :, : self.length])


class LayoutModel:
    """See gpt.generation.Model: the same methods over a layout, called by every rank in the same order."""

    def __init__(self, stages: list[Stage], mesh: Mesh, *, d_model: int, dtype: torch.dtype) -> None:
        self.d_model = d_model
        self.stages = dict(zip(mesh.stages, stages, strict=True))
        self.mesh = mesh
        self.dtype = dtype
        self.device = mesh.device
        self.vocab_size = stages[0].model.vocab_size
        self.last = mesh.layout.stages - 1

    def make_cache(self, capacity: int) -> dict[str, KeyValueCache]:
        return {name: KeyValueCache(capacity) for stage in self.stages.values() for name in stage.model.blocks}

    def next_logits(
        self,
        tokens: Tensor,
        *,
        earlier: int,
        positions: Tensor,
        mask: Tensor | None,
        cache: Mapping[str, KeyValueCache],
    ) -> Tensor:
        """Logits (b, v) fp32 after tokens (b, t). A message (b, r, d) between stages, a broadcast of the logits."""
        length = tokens.size(1)
        extra = -length % self.mesh.layout.tensor  # sequence parallelism needs equal shares
        with torch.inference_mode(False), torch.no_grad():  # FSDP keeps its buffers for training
            if extra:
                mask = _padded_mask(mask, earlier=earlier, length=length, extra=extra, device=self.device)
                tokens = functional.pad(tokens, (0, extra))
                positions = torch.cat((positions, positions[:, -1:].expand(-1, extra)), dim=1)
                trimmed: Mapping[str, LayerCache] = {name: _WithoutPadding(c, length) for name, c in cache.items()}
            else:
                trimmed = cache
            step = CachedStep(positions, mask, trimmed, length - 1)
            shape = (tokens.size(0), tokens.size(1) // self.mesh.layout.tensor, self.d_model)
            message = torch.empty(shape, dtype=self.dtype, device="meta")
            output = pass_through(
                self.stages, self.mesh, tokens, message, lambda index, x: self.stages[index](x, step=step)
            )
            return self._broadcast(output, tokens.size(0))

    def _broadcast(self, output: Tensor, sequences: int) -> Tensor:
        """From one rank to all, data ranks too: if they differed in a bit, they could part ways and wait for ever."""
        if self.last in self.stages:
            logits = output.float().contiguous()
        else:
            logits = torch.empty(sequences, self.vocab_size, dtype=torch.float32, device=self.device)
        dist.broadcast(logits, src=int(self.mesh.whole.mesh[self.mesh.layout.rank_of(self.last), 0, 0, 0]))
        return logits


def _padded_mask(mask: Tensor | None, *, earlier: int, length: int, extra: int, device: torch.device) -> Tensor:
    """A mask for `extra` queries more, which look everywhere: nobody reads what they see."""
    if mask is None:
        places = torch.arange(earlier + length, device=device)
        mask = (places <= places[earlier:, None])[None, None]  # (1, 1, t, s)
    return mask if mask.size(2) == 1 else functional.pad(mask, (0, 0, 0, extra), value=True)
