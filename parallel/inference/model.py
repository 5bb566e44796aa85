"""A model over tensor and pipeline ranks, as generation and evaluation use it.

Every rank runs its stages on the same tokens, with a key-value cache of its own layers and heads. The stages send
hidden states to each other. The result of the last stage is sent to all ranks, so all ranks choose the same tokens.
Shapes as in gpt/inference/model.py.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gpt.inference.kv_cache import KeyValueCache
from gpt.inference.model import ForwardInputs
from gpt.model.config import ModelConfig
from gpt.training.objective import NextToken
from parallel.adapters.base import with_bases
from parallel.adapters.merge import load_merged
from parallel.agreement import combine
from parallel.axes.pipeline_parallel import pass_through
from parallel.axes.stage import CachedStep, ModelStage, canonical_parameters
from parallel.checkpoint.handle import Checkpoint
from parallel.inference.local_stage import stages_for_inference
from parallel.layout.mesh import Mesh
from parallel.parallelize import build_inference_stage


class DistributedModel:
    """An InferenceModel over a layout. Every rank must make the same calls in the same order.

    `stages`: from stages_for_inference.
    `data_ranks_together`: data ranks need each other to compute, as under ZeRO 3. They therefore do the same work and
    count as one data rank.
    `in_turns`: data ranks need each other to compute, and do different work. Before each pass they agree that one of
    them has work; those that have finished run the pass on one token.
    """

    def __init__(
        self,
        stages: list[ModelStage],
        mesh: Mesh,
        *,
        d_model: int,
        dtype: torch.dtype,
        data_ranks_together: bool = False,
        in_turns: bool = False,
    ) -> None:
        assert not (data_ranks_together and in_turns)
        self.d_model = d_model
        self.stages = dict(zip(mesh.stages, stages, strict=True))
        self.mesh = mesh
        self.dtype = dtype
        self.device = mesh.device
        self.vocab_size = stages[0].model.vocab_size
        self.last = mesh.layout.stages - 1
        self.data_ranks_together, self.in_turns = data_ranks_together, in_turns
        self.data_rank, self.data_size = (0, 1) if data_ranks_together else (mesh.data_rank, mesh.layout.data)

    def gather(self, values: list[Any]) -> list[list[Any]]:
        if self.data_size == 1:
            return [values]
        peers = [self.mesh.peer_of(data_rank) for data_rank in range(self.data_size)]  # of one data rank, all agree
        return combine(values, lambda everyone: [everyone[peer] for peer in peers], None)

    def finish(self, *, before_each: Callable[[], None] = lambda: None) -> None:
        token = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        while self.in_turns and self._is_any_at_work(False):
            before_each()
            self._next_logits(ForwardInputs(token, token), torch.zeros(1, dtype=torch.int64, device=self.device))

    def _is_any_at_work(self, here: bool) -> bool:
        """Whether any of the data ranks that share weights has a pass to run. Each of them must call it."""
        with torch.inference_mode(False):
            flag = torch.tensor([int(here)], device=self.device)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.mesh.whole["dp_shard"].get_group())
            return bool(flag.item())

    def make_cache(self, capacity: int) -> dict[str, KeyValueCache]:
        return {name: KeyValueCache(capacity) for stage in self.stages.values() for name in stage.model.blocks}

    def next_logits(self, inputs: ForwardInputs, *, indices: Tensor | None = None) -> Tensor:
        """See `InferenceModel`. Sends one message (b, t, d) between stages and broadcasts the logits."""
        if indices is None:
            rows, length = inputs.tokens.shape
            indices = torch.arange(1, rows + 1, device=self.device) * length - 1
        if self.in_turns:
            self._is_any_at_work(True)
        return self._next_logits(inputs, indices)

    def _next_logits(self, inputs: ForwardInputs, indices: Tensor) -> Tensor:
        step = CachedStep(inputs.positions, inputs.mask, inputs.cache, indices)
        output = self._forward(inputs.tokens, step)
        return self._broadcast(output, (indices.numel(), self.vocab_size))

    def log_probs(self, inputs: ForwardInputs, *, indices: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """See `InferenceModel`. Sends messages of (b, t, d) in all between stages; broadcasts two numbers per target.

        Without a cache, the rows go through a pipeline in parts, so that its stages work at the same time.
        """
        assert not self.in_turns, "a pipeline takes several passes here"
        step = CachedStep(inputs.positions, inputs.mask, inputs.cache, indices, targets)
        pipeline = self.mesh.layout.pipeline
        parts = 2 * pipeline if inputs.cache is None and pipeline > 1 else 1
        outputs = [self._forward(tokens, part) for tokens, part in _split_rows(inputs.tokens, step, parts)]
        with torch.inference_mode(False):
            output = torch.cat(outputs, dim=1) if self.last in self.stages else outputs[0]
        log_probs, greedy = self._broadcast(output, (2, targets.numel())).unbind()
        return log_probs, greedy > 0

    def _forward(self, tokens: Tensor, step: CachedStep) -> Tensor:
        """Run this rank's stages. Returns the output of the last of them."""
        with torch.inference_mode(False), torch.no_grad():  # FSDP keeps its buffers for training
            message = torch.empty((*tokens.shape, self.d_model), dtype=self.dtype, device="meta")
            return pass_through(
                self.stages, self.mesh, tokens, message, lambda index, x: self.stages[index](x, step=step)
            )

    def _broadcast(self, output: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Send the last stage's output to all other stages.

        The tensor ranks of the last stage have the same bits, since they gathered the same parts. Data ranks that work
        together all get the output of one: if theirs differed in a bit, they could choose different tokens and
        deadlock.
        """
        with torch.inference_mode(False), torch.no_grad():
            if not math.prod(shape):  # the pass only filled the cache
                return torch.empty(shape, device=self.device)
            if self.last in self.stages:
                output = output.float().contiguous()
            else:
                output = torch.empty(shape, dtype=torch.float32, device=self.device)
            if self.data_ranks_together:
                dist.broadcast(output, src=int(self.mesh.whole.mesh[self.mesh.layout.rank_of(self.last), 0, 0, 0]))
            elif self.mesh.layout.pipeline > 1:
                dist.broadcast(output, src=self.mesh.global_rank_of(self.last), group=self.mesh.pipeline_group)
            return output


def load_distributed_model(
    checkpoint: Checkpoint, config: ModelConfig, mesh: Mesh, *, dtype: torch.dtype
) -> DistributedModel:
    """Load the weights of a checkpoint of any layout, rounded to `dtype`, as a model over `mesh`, without gradients.

    Adapters are merged into the weights.

    Every rank must call it. Memory of a rank: its share of the weights, and one tensor. Errors as for
    `load_checkpoint`.
    """
    stages = [build_inference_stage(config, mesh, index=index, dtype=dtype) for index in mesh.stages]
    weights = {f"model.{name}": p.data for stage in stages for name, p in canonical_parameters(stage)}
    load_merged(with_bases(checkpoint), weights, rounded=True)
    stages = stages_for_inference(stages, mesh, config=config, objective=NextToken(), free=False)
    return DistributedModel(stages, mesh, d_model=config.d_model, dtype=dtype)


def _split_rows(tokens: Tensor, step: CachedStep, parts: int) -> Iterator[tuple[Tensor, CachedStep]]:
    """Split a step without a cache into at most `parts` steps of about equally many rows."""
    rows, length = tokens.shape
    size = -(-rows // min(parts, rows))
    if size == rows:
        yield tokens, step
        return
    assert step.targets is not None
    for start in range(0, rows, size):
        own = slice(start, start + size)
        in_part = (step.indices >= start * length) & (step.indices < (start + size) * length)
        yield (
            tokens[own],
            CachedStep(
                positions=step.positions if step.positions.size(0) == 1 else step.positions[own],
                mask=step.mask if step.mask is None or step.mask.size(0) == 1 else step.mask[own],
                cache=None,
                indices=step.indices[in_part] - start * length,
                targets=step.targets[in_part],
            ),
        )
