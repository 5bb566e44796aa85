"""The engine of NVIDIA's Megatron-core: its GPTModel, schedules, data-parallel gradients and optimizer, on our mesh.

Weights, data order, loss, clipping and checkpoints are those of the native engine.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gpt.errors import ConfigError
from gpt.inference.model import InferenceModel
from gpt.losses.batch import Batch
from gpt.training.engine import StepResult, Totals
from gpt.training.objective import NextToken, Objective
from gpt.training.optimizer import check_patterns
from parallel.agreement import combine
from parallel.axes.gradients import whole
from parallel.axes.initialisation import initialise_shards
from parallel.engines.capabilities import MEGATRON
from parallel.engines.checkpoints import open_checkpoints
from parallel.engines.settings import EngineSettings, sharding_signature
from parallel.engines.sums import StepSums, add_totals, evaluation_totals
from parallel.engines.token_values import from_last_stage
from parallel.health.replica_check import ReplicaCheck, describe
from parallel.health.weight_digests import model_digest, weight_digests
from parallel.inference.model import DistributedModel
from parallel.layout.mesh import Mesh, build_mesh
from parallel.megatron.groups import data_group, start_groups
from parallel.megatron.inference import copied_stages, replica_check, whole_weights
from parallel.megatron.model import build_chunks
from parallel.megatron.optimizer import MAIN, ParameterState, build_megatron_optimizer
from parallel.megatron.parameters import MegatronParameter, mark_tensor_axis, megatron_parameters
from parallel.megatron.saved_tensors import MegatronTensors
from parallel.megatron.schedules import MegatronSchedule
from parallel.megatron.sharding import sharded_weights
from parallel.parallelize import parameter_names


class MegatronEngine:
    """See gpt.training.engine.Engine and parallel.engines.choose.build_engine."""

    capabilities = MEGATRON

    def __init__(
        self,
        settings: EngineSettings,
        *,
        objective: Objective,
        device: torch.device,
        init_weights: bool | tuple[str, ...] = True,
        mesh: Mesh | None = None,
    ) -> None:
        self._check(settings, objective)
        self.settings, self.objective = settings, objective
        self.loss = objective.loss(compile=False)
        self.mesh = build_mesh(settings.layout, device) if mesh is None else mesh
        start_groups(settings.layout, seed=settings.seed)
        models, self.config = build_chunks(settings, self.mesh)
        self.parameters = self._parameters(models)
        self.chunks, self.optimizer = self._wrap(models)
        self.state = ParameterState(self.parameters, self.optimizer, data_group=data_group())
        if init_weights:
            self._initialise()
        self.checkpoints = open_checkpoints(
            MegatronTensors(self.parameters, self.state),
            device=self.mesh.device,
            sharding=sharding_signature(settings),
        )
        self._replica_check: ReplicaCheck | None = None
        self.schedule = MegatronSchedule(self.chunks, settings.model, self.mesh, self.loss)
        self._finished = False  # whether Megatron has finished the gradients of this step
        self.data_rank, self.data_size = self.mesh.data_rank, settings.layout.data
        self.is_main = dist.get_rank() == 0

    def forward_backward(self, batch: Batch) -> None:
        assert not self._finished, "forward_backward between named_gradients and optimizer_step"
        batch = batch.to(self.mesh.device)
        self.schedule.run(list(batch.split(self.settings.micro_batch_size)), forward_only=False)

    def optimizer_step(
        self, learning_rate: float, *, flags: tuple[bool, ...] = (), discard: bool = False
    ) -> StepResult:
        config = self.settings.optimizer
        assert config is not None, "this engine was built without an optimizer"
        self._finish_gradients()
        self.optimizer.prepare_grads()
        sums = self._add_up(raised=(discard, *flags))
        norm = math.sqrt(sums.squared_norm)
        result = sums.result(norm)
        if result.updated:
            clip = min(1.0, config.max_gradient_norm / (norm + 1e-6))
            if gradients := self._gradients():  # a data rank may hold nothing but padding
                torch._foreach_mul_(gradients, clip)  # type: ignore[attr-defined]
            self.state.step(learning_rate)
        self._clear_gradients()
        return result

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> Totals:
        assert not self.schedule.totals, "evaluate between forward_backward and optimizer_step"
        waiting: list[Batch] = []
        for batch in batches:
            waiting.append(batch.to(self.mesh.device))
            if len(waiting) == self.settings.layout.pipeline:  # as many as keep all stages busy
                self.schedule.run(waiting, forward_only=True)
                waiting = []
        if waiting:
            self.schedule.run(waiting, forward_only=True)
        names = self.loss.evaluation_names
        numbers = self._local_totals(metrics=len(names))
        dist.all_reduce(numbers)
        return evaluation_totals(numbers, names=names)

    @torch.no_grad()
    def token_values(self, batch: Batch, *, before_each: Callable[[], None] = lambda: None) -> Tensor:
        """See gpt.training.engine.Engine. `batch` has whole micro-batches."""
        assert not self.schedule.totals, "token_values after forward_backward"
        before_each()
        batch = batch.to(self.mesh.device)
        values = self.schedule.token_values(list(batch.split(self.settings.micro_batch_size)))
        if self.settings.layout.pipeline == 1:
            return torch.cat(values)
        return from_last_stage(values, batch, self.mesh, loss=self.loss)

    def named_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """See gpt.training.engine.Engine. Memory: two parameters at a time."""
        self._finish_gradients()
        tied = self.settings.model.tied and self.mesh.stages[0] > 0
        for one in self.parameters:
            gradient = self.state.read_gradient(one.parameter)
            for weight, part in zip(one.weights, one.split(gradient), strict=True):
                if not (tied and weight.name == "embed.tokens.weight"):  # the first stage's rank yields it
                    yield weight.name, whole(weight.on_tensor_ranks(part.contiguous()))

    @contextmanager
    def as_model(self, *, together: bool = False, in_turns: bool = False) -> Iterator[InferenceModel]:
        """See gpt.training.engine.Engine.

        The model is a copy of the weights in our own form, in the compute dtype: 2 or 4 bytes for each parameter of
        this rank's stages and tensor part, until the context ends. Each data rank has one.
        """
        dtype = self.config.params_dtype
        yield DistributedModel(
            copied_stages(self.settings, self.mesh, self.parameters, dtype=dtype),
            self.mesh,
            d_model=self.settings.model.d_model,
            dtype=dtype,
            data_ranks_together=together,
        )

    def weights_digest(self) -> str:
        return combine(weight_digests(whole_weights(self.parameters, self.state)), model_digest, None)

    def all_gather_objects(self, values: list[Any]) -> list[list[Any]]:
        return combine(values, lambda everyone: [found for found in everyone if found], None)

    def check_replicas(self) -> str | None:
        if self._replica_check is None:
            self._replica_check = replica_check(self.parameters, self.state, self.mesh)
        differences = self._replica_check.compare()
        return describe(differences) if differences else None

    @staticmethod
    def _check(settings: EngineSettings, objective: Objective) -> None:
        """ConfigError: another objective than next_token, or a pattern that matches no parameter."""
        if not isinstance(objective, NextToken):
            raise ConfigError(
                "parallel.engine = 'megatron' is invalid for this objective: it trains next_token only. Use "
                "parallel.engine = 'native'"
            )
        if settings.optimizer is not None:
            check_patterns(parameter_names(settings.model, objective), settings.optimizer)

    def _parameters(self, models: list[nn.Module]) -> list[MegatronParameter]:
        found: list[MegatronParameter] = []
        for stage, model in zip(self.mesh.stages, models, strict=True):
            weights = sharded_weights(self.settings, self.objective, self.mesh, stage=stage)
            layers = self.settings.layout.layers_of(stage)
            found += megatron_parameters(model, self.settings.model, weights, layers=layers)
        for one in found:
            mark_tensor_axis(one)
        return found

    def _wrap(self, models: list[nn.Module]) -> tuple[list[Any], Any]:
        """The stages with Megatron's gradient buffers, and its optimizer; without an optimizer, the stages alone."""
        if self.settings.optimizer is None:
            return models, None
        from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

        shards = self.settings.parallel.zero_stage == 1 and self.settings.layout.data > 1
        options = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=shards)
        chunks = [
            DistributedDataParallel(self.config, options, model, disable_bucketing=i > 0)
            for i, model in enumerate(models)
        ]
        optimizer = build_megatron_optimizer(
            chunks,
            self.parameters,
            self.settings.optimizer,
            shards=shards,
            bf16=self.settings.parallel.precision == "bf16",
        )
        return chunks, optimizer

    def _initialise(self) -> None:
        """Fill every weight with the bits that one process of the native engine would have. Memory: one weight."""
        for one in self.parameters:
            parts = []
            for weight in one.weights:
                part = torch.empty(weight.tensor_shape, device=self.mesh.device)
                initialise_shards(
                    [(weight.name, weight.on_tensor_ranks(part))], self.settings.model, seed=self.settings.seed
                )
                parts.append(part)
            self.state.write(one.parameter, MAIN, one.join(parts))

    def _finish_gradients(self) -> None:
        """Sum up the gradients over data ranks and of tied weights, and divide them by the number of targets.

        Once a step; every rank must call it.
        """
        if self._finished:
            return
        from megatron.core.distributed import finalize_model_grads

        count = torch.zeros((), dtype=torch.int64, device=self.mesh.device)
        for _, of_micro_batch, *_ in self.schedule.totals:  # on the last stage; Megatron sends it to the others
            count += of_micro_batch
        finalize_model_grads(self.chunks, count)
        self._finished = True

    def _clear_gradients(self) -> None:
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        self._finished = False

    def _gradients(self) -> list[Tensor]:
        """The gradients that the optimizer reads, or this data rank's parts of them."""
        groups = self.optimizer.param_groups
        return [weight.grad for group in groups for weight in group["params"] if weight.grad is not None]

    def _add_up(self, *, raised: tuple[bool, ...]) -> StepSums:
        """The step's sums over all ranks, in one all-reduce."""
        squared = torch.zeros((), dtype=torch.float64, device=self.mesh.device)
        gradients = self.optimizer.chained_optimizers[0].get_main_grads_for_grad_norm()
        if gradients:
            norms = torch.stack(torch._foreach_norm(gradients, 2, dtype=torch.float64))  # type: ignore[attr-defined]
            squared += norms.square().sum() / self.state.copies
        names = self.loss.metric_names
        numbers = StepSums.to_tensor(squared, self._local_totals(metrics=len(names)), raised)
        dist.all_reduce(numbers)
        return StepSums.from_tensor(numbers, metric_names=names)

    def _local_totals(self, *, metrics: int) -> Tensor:
        """Loss, number of targets and metrics collected since the last call, (2 + metrics,) float64 on the device.

        Of the tensor ranks, which computed the same loss, one has them and the others have zeros.
        """
        totals, self.schedule.totals = self.schedule.totals, []
        return add_totals(totals if self.mesh.tensor_rank == 0 else [], metrics=metrics, device=self.mesh.device)
