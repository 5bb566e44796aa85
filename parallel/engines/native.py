"""The default engine: tensor axis, torch.distributed.pipelining and FSDP2 on one mesh, on CUDA (NCCL) or CPU (gloo)."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from gpt.adapters.config import is_adapter
from gpt.inference.model import InferenceModel
from gpt.losses.batch import Batch
from gpt.losses.packed_rows import micro_batches
from gpt.training.engine import StepResult, Totals
from gpt.training.objective import Objective
from parallel.agreement import combine
from parallel.axes.data_parallel import accumulate
from parallel.axes.gradients import (
    local,
    scale_gradients,
    squared_norm,
    sum_partial_gradients,
    sum_tied_gradients,
    whole_gradients,
)
from parallel.axes.initialisation import initialise_shards
from parallel.axes.pipeline_parallel import Pipeline
from parallel.axes.precision import ARITHMETIC
from parallel.axes.stage import ModelStage, canonical_parameters
from parallel.engines.capabilities import NATIVE
from parallel.engines.checkpoints import open_checkpoints
from parallel.engines.native_tensors import NativeTensors
from parallel.engines.optimizer_state import OptimizerState
from parallel.engines.settings import EngineSettings, sharding_signature
from parallel.engines.sums import StepSums, add_totals, evaluation_totals
from parallel.engines.token_values import values_of_tokens
from parallel.health.replica_check import ReplicaCheck, describe
from parallel.health.weight_digests import model_digest, weight_digests
from parallel.inference.local_stage import stages_for_inference
from parallel.inference.model import DistributedModel
from parallel.inference.packed_stage import can_pack_stages, packed_stages
from parallel.layout.mesh import Mesh, build_mesh
from parallel.parallelize import build_stage, check_parameter_patterns


class NativeEngine:
    """See gpt.training.engine.Engine and parallel.engines.choose.build_engine.

    Without `settings.optimizer` the engine trains nothing: it evaluates, generates and loads weights.
    """

    capabilities = NATIVE

    def __init__(
        self,
        settings: EngineSettings,
        *,
        objective: Objective,
        device: torch.device,
        init_weights: bool | tuple[str, ...] = True,
        mesh: Mesh | None = None,
    ) -> None:
        self.settings, self.objective = settings, objective
        self.loss = objective.loss(compile=settings.parallel.compile)
        if settings.optimizer is not None:
            check_parameter_patterns(settings.model, objective, optimizer=settings.optimizer, adapter=settings.adapter)
        self.mesh = build_mesh(settings.layout, device) if mesh is None else mesh
        self.stages = [
            build_stage(
                settings.model,
                settings.parallel,
                self.mesh,
                index=index,
                objective=objective,
                loss=self.loss,
                optimizer=settings.optimizer,
                residual_dropout=settings.residual_dropout,
                adapter=settings.adapter,
            )
            for index in self.mesh.stages
        ]
        self.parameters = [named for stage in self.stages for named in canonical_parameters(stage)]
        self._tied_copies = self._find_tied_copies()
        fresh = [named for named in self.parameters if _is_fresh(named[0], init_weights)]
        initialise_shards(fresh, settings.model, seed=settings.seed)
        self.optimizer = OptimizerState(self.parameters, settings.optimizer)
        self.pipeline = (
            Pipeline(self.stages, settings.model, self.mesh, settings.parallel)
            if settings.layout.pipeline > 1
            else None
        )
        self._packs = self._packed_multiple()
        self._partial_gradients = False  # gradients that tensor ranks have not added up yet
        self._replica_check: ReplicaCheck | None = None
        self.tensors = NativeTensors(self.parameters, self.optimizer, self._tied_copies, settings.saves_frozen)
        self.checkpoints = open_checkpoints(
            self.tensors, device=self.mesh.device, sharding=sharding_signature(settings)
        )
        self.data_rank, self.data_size = self.mesh.data_rank, settings.layout.data
        self.is_main = dist.get_rank() == 0

    def forward_backward(self, batch: Batch) -> None:
        self._partial_gradients = self.settings.layout.tensor > 1
        batch = batch.to(self.mesh.device)
        size = self.settings.micro_batch_size
        if self.pipeline is not None:
            self.pipeline.forward_backward(batch, micro_batches=len(batch) // size)
        else:
            parts = [part.batch for part in micro_batches(batch, rows=size, multiple=self._packs)]
            accumulate(self.stages[0], parts, zero_stage=self.settings.parallel.zero_stage)

    def optimizer_step(
        self, learning_rate: float, *, flags: tuple[bool, ...] = (), discard: bool = False
    ) -> StepResult:
        config = self.settings.optimizer
        assert config is not None, "this engine was built without an optimizer"
        sums = self._add_up(raised=(discard, *flags))
        count = max(sums.count, 1.0)
        norm = math.sqrt(sums.squared_norm) / count
        result = sums.result(norm)
        if result.updated:
            clip = min(1.0, config.max_gradient_norm / (norm + 1e-6))
            scale_gradients(self.optimizer.parameters, clip / count)
            self.optimizer.step(learning_rate)
            self.objective.after_step([(name, local(p.detach())) for name, p in self.parameters if p.requires_grad])
        self.optimizer.clear_gradients()
        return result

    def _add_up(self, *, raised: tuple[bool, ...]) -> StepSums:
        """The step's sums over all ranks, in one all-reduce."""
        self._finish_gradients()
        if self._tied_copies and self._tied_copies[0].requires_grad:
            sum_tied_gradients(self._tied_copies, self.mesh)
        elsewhere = set(self._tied_copies[1:] if 0 in self.mesh.stages else self._tied_copies)
        squared = squared_norm(self.optimizer.parameters, self.mesh, counted_elsewhere=elsewhere)
        names = self.loss.metric_names
        numbers = StepSums.to_tensor(squared, self._local_totals(metrics=len(names)), raised)
        dist.all_reduce(numbers)
        return StepSums.from_tensor(numbers, metric_names=names)

    def _finish_gradients(self) -> None:
        if self._partial_gradients:
            splits = self.settings.parallel.sequence_parallel
            sum_partial_gradients(self.parameters, self.mesh, splits_sequence=splits)
            self._partial_gradients = False

    def named_gradients(self) -> Iterator[tuple[str, Tensor]]:
        self._finish_gradients()
        totals = self.stages[-1].totals
        numbers = self._local_totals(metrics=len(self.loss.metric_names))
        self.stages[-1].totals = totals  # for optimizer_step
        dist.all_reduce(numbers)
        count = max(float(numbers[1]), 1.0)
        _allow_slow_gathers()
        return whole_gradients(self.parameters, self.mesh, tied_copies=self._tied_copies, divisor=count)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> Totals:
        assert not any(stage.totals for stage in self.stages), "evaluate between forward_backward and optimizer_step"
        for batch in batches:
            batch = batch.to(self.mesh.device)
            if self.pipeline is not None:
                self.pipeline.forward(batch)
            else:
                self.stages[0](batch.inputs, batch)
        self._reshard()
        names = self.loss.evaluation_names
        numbers = self._local_totals(metrics=len(names))
        dist.all_reduce(numbers)
        return evaluation_totals(numbers, names=names)

    def token_values(self, batch: Batch, *, before_each: Callable[[], None] = lambda: None) -> Tensor:
        """See gpt.training.engine.Engine.

        If the engine trains, autograd records the forward pass, since torch compiles other code without. It keeps the
        activations of one micro-batch.
        """
        assert not any(stage.totals for stage in self.stages), "token_values after forward_backward"
        with torch.set_grad_enabled(self.settings.optimizer is not None):
            values = values_of_tokens(
                batch.to(self.mesh.device),
                self.stages,
                self.pipeline,
                self.mesh,
                micro_batch_size=self.settings.micro_batch_size,
                multiple=self._packs,
                before_each=before_each,
            )
        self._reshard()
        return values

    @contextmanager
    def as_model(self, *, together: bool = False, in_turns: bool = False) -> Iterator[InferenceModel]:
        """See gpt.training.engine.Engine.

        Under ZeRO 3, data ranks gather each block's weights together: they do the same work, or take turns. Otherwise
        each gathers the weights of its stages once, and packs them on a CPU. Compiled blocks run uncompiled, since
        shapes change with each token.
        """
        settings = self.settings
        free = settings.parallel.zero_stage == 3
        dtype = ARITHMETIC[settings.parallel.precision].compute
        try:
            with torch.compiler.set_stance("force_eager"):
                yield DistributedModel(
                    self._stages_for_inference(dtype, free=free),
                    self.mesh,
                    d_model=settings.model.d_model,
                    dtype=dtype,
                    data_ranks_together=together or (free and not in_turns),
                    in_turns=free and in_turns,
                )
        finally:
            self._reshard()

    def _stages_for_inference(self, dtype: torch.dtype, *, free: bool) -> list[ModelStage]:
        model, objective = self.settings.model, self.objective
        if not free and can_pack_stages(self.stages, self.mesh, dtype):
            return packed_stages(self.stages, config=model, objective=objective)
        if not free:
            for module in self._sharded_modules():
                module.unshard()
        return stages_for_inference(self.stages, self.mesh, config=model, objective=objective, free=free)

    def weights_digest(self) -> str:
        _allow_slow_gathers()
        return combine(weight_digests(self.parameters), model_digest, None)

    def all_gather_objects(self, values: list[Any]) -> list[list[Any]]:
        return combine(values, lambda everyone: [found for found in everyone if found], None)

    def check_replicas(self) -> str | None:
        if self._replica_check is None:
            self._replica_check = ReplicaCheck(
                [(name, p, (p.data, *self.optimizer.tensors_of(p).values())) for name, p in self.parameters],
                kinds=("model.", *(f"optimizer.{key}." for key in self.optimizer.names)),
                device=self.mesh.device,
            )
        differences = self._replica_check.compare()
        return describe(differences) if differences else None

    def _local_totals(self, *, metrics: int = 0) -> Tensor:
        """Loss, number of targets and metrics collected since the last call, (2 + metrics,) float64 on the device.

        Of the ranks that computed the same loss, one has them and the others have zeros.
        """
        totals, self.stages[-1].totals = self.stages[-1].totals, []
        return add_totals(totals if self.mesh.tensor_rank == 0 else [], metrics=metrics, device=self.mesh.device)

    def _packed_multiple(self) -> int | None:
        """The multiple of packed micro-batches; None: padded ones, as pipelines and compiled code need equal shapes."""
        parallel = self.settings.parallel
        if self.mesh.device.type != "cpu" or self.pipeline is not None or parallel.compile:
            return None
        return parallel.tensor if parallel.sequence_parallel else 1

    def _reshard(self) -> None:
        """Free gathered weights: a checkpoint may change the sharded ones without a backward pass.

        Also forget the order of the forward pass, in which FSDP would gather weights during the next backward pass.
        """
        for module in self._sharded_modules():
            module.reshard()
            state = module._get_fsdp_state()
            if hasattr(state._comm_ctx, "post_forward_order"):  # FSDP makes it in the first forward pass
                state._comm_ctx.post_forward_order.clear()
            for group in state._fsdp_param_groups:
                group._post_forward_indices.clear()

    def _sharded_modules(self) -> Iterator[FSDPModule]:
        for stage in self.stages:
            for module in stage.modules():
                if isinstance(module, FSDPModule):
                    yield module

    def _find_tied_copies(self) -> list[torch.nn.Parameter]:
        """This rank's copies of the tied weight, in order, if the first and the last stage hold one each."""
        if self.settings.layout.stages == 1 or not self.stages[0].model.tied:
            return []
        return [parameter for name, parameter in self.parameters if name == "embed.tokens.weight"]


def _is_fresh(name: str, init_weights: bool | tuple[str, ...]) -> bool:
    """Return whether a parameter is to be initialised from the seed: no checkpoint of a base model has adapters."""
    return init_weights is True or is_adapter(name) or (init_weights is not False and name in init_weights)


def _allow_slow_gathers() -> None:
    """Gathering a tensor takes several steps on some layouts; silence torch's warning that this may be slow."""
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
