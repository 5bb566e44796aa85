"""Run this rank's stages under Megatron's schedules, with our loss."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gpt.errors import ConfigError
from gpt.losses.base import Loss, TokenValues
from gpt.losses.batch import Batch
from gpt.model.config import ModelConfig
from parallel.layout.mesh import Mesh
from parallel.megatron.model import head_outputs


class MegatronSchedule:
    """The stages of this rank among those of its pipeline: 1F1B, interleaved 1F1B, or one micro-batch after the other.

    `totals` collects, a tuple per micro-batch, the reported loss, its count and its metrics.
    """

    def __init__(self, chunks: list[nn.Module], model: ModelConfig, mesh: Mesh, loss: Loss) -> None:
        self.chunks, self.model, self.mesh, self.loss = chunks, model, mesh, loss
        self.totals: list[tuple[Tensor, ...]] = []
        self._values: list[Tensor] | None = None  # of the last stage, while `token_values` collects them

    def token_values(self, micro_batches: Sequence[Batch]) -> list[Tensor]:
        """The loss's values (b, t) of micro-batches of one shape, forward only; none before the last stage."""
        assert isinstance(self.loss, TokenValues), "this objective's loss has no values of tokens"
        values: list[Tensor] = []
        self._values = values
        self.run(micro_batches, forward_only=True)
        self._values = None
        return values[: len(micro_batches)]

    def run(self, micro_batches: Sequence[Batch], *, forward_only: bool) -> None:
        """Forward, and backward unless `forward_only`, of micro-batches of one shape, the same on every stage.

        Gradients add up on each data rank; nothing is reduced over data ranks.
        """
        from megatron.core.pipeline_parallel import get_forward_backward_func

        given = list(micro_batches)
        if self.mesh.layout.stages > self.mesh.layout.pipeline:  # an interleaved schedule needs whole rounds
            given += [micro_batches[-1]] * (-len(given) % self.mesh.layout.pipeline)
        iterators = [iter(given) for _ in self.chunks]
        rows, length = given[0].inputs.shape
        before = len(self.totals)
        get_forward_backward_func()(
            forward_step_func=self._forward_step,
            data_iterator=iterators if len(iterators) > 1 else iterators[0],
            model=self.chunks if len(self.chunks) > 1 else self.chunks[0],
            num_microbatches=len(given),
            seq_length=length,
            micro_batch_size=rows,
            forward_only=forward_only,
        )
        assert forward_only or len(given) == len(micro_batches)
        del self.totals[before + len(micro_batches) :]  # of the batches that fill a round

    def _forward_step(self, batches: Iterator[Batch], model: Any) -> tuple[Tensor, Any]:
        """Megatron's interface: the stage's output, and the function that makes it a loss on the last stage."""
        batch = next(batches)
        if batch.positions is not None or batch.segment_ids is not None:
            raise ConfigError(
                "parallel.engine = 'megatron' is invalid for batches with positions or segments of their own: its "
                "attention is causal over the whole sequence. Use parallel.engine = 'native'"
            )
        positions = torch.arange(batch.inputs.size(1), device=batch.inputs.device).expand_as(batch.inputs)
        output: Tensor = model(batch.inputs, positions, None)  # no mask: the layers are causal
        return output, partial(self._loss_of, model=model, batch=batch)

    def _loss_of(self, hidden: Tensor, *, model: Any, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The summed loss, the number of targets, and nothing for Megatron to report. `hidden` (b, t, d)."""
        plain = getattr(model, "module", model)  # without Megatron's gradient buffers
        outputs = head_outputs(plain, hidden, self.model, self.mesh)
        if self._values is not None:
            assert isinstance(self.loss, TokenValues)
            self._values.append(self.loss.values(outputs, batch))
            return hidden.new_zeros(()), torch.ones((), dtype=torch.int32, device=hidden.device), {}
        totals = self.loss(outputs, batch)
        names = self.loss.metric_names if torch.is_grad_enabled() else self.loss.evaluation_names
        self.totals.append((totals.reported, totals.count, *(totals.metrics[name] for name in names)))
        return totals.sum, totals.count.int(), {}
