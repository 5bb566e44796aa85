"""The DeepSpeed engine: our model stage, loss and initialisation under DeepSpeed's ZeRO 1, 2 and 3."""

import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gpt.inference.model import InferenceModel
from gpt.losses.batch import Batch
from gpt.training.engine import StepResult, Totals
from gpt.training.objective import Objective
from gpt.training.optimizer import build_optimizer, check_patterns
from parallel.agreement import combine
from parallel.axes.pipeline_parallel import Pipeline
from parallel.axes.stage import ModelStage, canonical_parameters
from parallel.engines.capabilities import DEEPSPEED
from parallel.engines.checkpoints import open_checkpoints
from parallel.engines.settings import EngineSettings, sharding_signature
from parallel.engines.sums import StepSums, add_totals, evaluation_totals
from parallel.engines.token_values import values_of_tokens
from parallel.health.replica_check import ReplicaCheck, describe
from parallel.health.weight_digests import digest, model_digest
from parallel.inference.model import DistributedModel
from parallel.layout.mesh import Mesh, build_mesh
from parallel.parallelize import build_unsharded_stage, parameter_names
from parallel.zero.fragments import ZeroFragments
from parallel.zero.saved_tensors import ZeroTensors
from parallel.zero.setup import destroy, partition, start
from parallel.zero.update import ZeroUpdate


class DeepSpeedEngine:
    """See gpt.training.engine.Engine and parallel.engines.choose.build_engine.

    DeepSpeed runs forward and backward, reduces gradients, updates and gathers weights. Totals, norm, clipping and the
    decision to skip a step are the native engine's. Without `settings.optimizer` the engine trains nothing.
    """

    capabilities = DEEPSPEED

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
            check_patterns(parameter_names(settings.model, objective), settings.optimizer)
        self.mesh = build_mesh(settings.layout, device) if mesh is None else mesh
        self.dtype = torch.bfloat16 if settings.parallel.precision == "bf16" else torch.float32
        self.stages, optimizer = self._build_stages()
        self.pipeline = (
            Pipeline(self.stages, settings.model, self.mesh, settings.parallel)
            if settings.layout.pipeline > 1
            else None
        )
        self._deepspeed: Any = None
        if optimizer is not None or settings.parallel.zero_stage == 3:  # ZeRO 1 and 2 are about the optimizer
            trained = self.stages[0] if self.pipeline is None else nn.ModuleList(self.stages)
            self._deepspeed = start(trained, optimizer, settings, self.mesh)
            weakref.finalize(self, destroy, self._deepspeed).atexit = False
        self.fragments = ZeroFragments(
            [named for stage in self.stages for named in canonical_parameters(stage)],
            None if self._deepspeed is None else self._deepspeed.optimizer,
            optimizer,
            state_names=() if settings.optimizer is None else settings.optimizer.state,
            mesh=self.mesh,
        )
        self._update = ZeroUpdate(
            self._deepspeed, self.fragments, tied_copies=self._tied_copies(), after_step=objective.after_step
        )
        if init_weights:
            self.fragments.initialise(settings.model, seed=settings.seed)
            self.fragments.update_compute_weights()
        self._replica_check: ReplicaCheck | None = None
        self.checkpoints = open_checkpoints(
            ZeroTensors(self.fragments), device=self.mesh.device, sharding=sharding_signature(settings)
        )
        self.data_rank, self.data_size = self.mesh.data_rank, settings.layout.data
        self.is_main = dist.get_rank() == 0

    def _build_stages(self) -> tuple[list[ModelStage], torch.optim.Optimizer | None]:
        """This rank's stages on the device, in the compute dtype and not yet filled, and their optimizer.

        ZeRO 3 cuts each module when it is allocated, so that no rank ever holds the whole model.
        """
        settings = self.settings
        stages = [
            build_unsharded_stage(
                settings.model,
                settings.parallel,
                self.mesh,
                index=index,
                objective=self.objective,
                loss=self.loss,
                optimizer=settings.optimizer,
                residual_dropout=settings.residual_dropout,
            ).to(self.dtype)
            for index in self.mesh.stages
        ]
        optimizer = None
        if settings.optimizer is not None:  # on the meta device: the shapes of cut parameters say nothing
            on_meta = [named for stage in stages for named in canonical_parameters(stage)]
            optimizer = build_optimizer(on_meta, settings.optimizer)
            names = {id(parameter): name for name, parameter in on_meta}
        for stage in stages:
            for module in stage.modules():
                module.to_empty(device=self.mesh.device, recurse=False)
                stage.model.tie()  # allocation makes two parameters of a shared one
                if settings.parallel.zero_stage == 3:
                    partition(module, settings, self.mesh)
        if optimizer is not None:
            real = {name: parameter for stage in stages for name, parameter in canonical_parameters(stage)}
            for group in optimizer.param_groups:
                group["params"] = [real[names[id(parameter)]] for parameter in group["params"]]
        return stages, optimizer

    def _tied_copies(self) -> list[nn.Parameter]:
        """This rank's copy of the tied weight, if the first and the last stage hold one each."""
        if self.pipeline is None or not self.stages[0].model.tied:
            return []
        return [one.parameter for one in self.fragments.all if one.name == "embed.tokens.weight"]

    def forward_backward(self, batch: Batch) -> None:
        batch = batch.to(self.mesh.device)
        size = self.settings.micro_batch_size
        if self.pipeline is not None:
            self.pipeline.forward_backward(batch, micro_batches=len(batch) // size)
            return
        for micro_batch in batch.split(size):
            self._deepspeed.backward(self._deepspeed(micro_batch.inputs, micro_batch))

    def optimizer_step(
        self, learning_rate: float, *, flags: tuple[bool, ...] = (), discard: bool = False
    ) -> StepResult:
        config = self.settings.optimizer
        assert config is not None, "this engine was built without an optimizer"
        self._update.finish_reduction()
        names = self.loss.metric_names
        totals = self._local_totals(metrics=len(names))
        numbers = StepSums.to_tensor(self._update.squared_norm(), totals, (discard, *flags))
        dist.all_reduce(numbers)
        sums = StepSums.from_tensor(numbers, metric_names=names)
        count = max(sums.count, 1.0)
        norm = math.sqrt(sums.squared_norm) / count
        result = sums.result(norm)
        if result.updated:
            clip = min(1.0, config.max_gradient_norm / (norm + 1e-6))
            self._update.apply(learning_rate, factor=clip / count)
        else:
            self._update.discard()
        return result

    @torch.no_grad()
    def named_gradients(self) -> Iterator[tuple[str, Tensor]]:
        """See gpt.training.engine.Engine."""
        self._update.finish_reduction()
        counts = [totals[1].double() for totals in self.stages[-1].totals]
        count = torch.stack([torch.zeros((), dtype=torch.float64, device=self.mesh.device), *counts]).sum()
        dist.all_reduce(count)
        for fragment, gradient in self._update.gradients():
            yield fragment.name, self.fragments.whole(fragment, gradient) / count.clamp(min=1).float()

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> Totals:
        assert not any(stage.totals for stage in self.stages), "evaluate between forward_backward and optimizer_step"
        for batch in batches:
            batch = batch.to(self.mesh.device)
            if self.pipeline is not None:
                self.pipeline.forward(batch)
            else:
                self.stages[0](batch.inputs, batch)
        self._free_gathered()
        names = self.loss.evaluation_names
        numbers = self._local_totals(metrics=len(names))
        dist.all_reduce(numbers)
        return evaluation_totals(numbers, names=names)

    @torch.no_grad()
    def token_values(self, batch: Batch, *, before_each: Callable[[], None] = lambda: None) -> Tensor:
        """See gpt.training.engine.Engine. Nothing is compiled, so the code is the same without gradients."""
        assert not any(stage.totals for stage in self.stages), "token_values after forward_backward"
        values = values_of_tokens(
            batch.to(self.mesh.device),
            self.stages,
            self.pipeline,
            self.mesh,
            micro_batch_size=self.settings.micro_batch_size,
            before_each=before_each,
        )
        self._free_gathered()
        return values

    @contextmanager
    def as_model(self, *, together: bool = False, in_turns: bool = False) -> Iterator[InferenceModel]:
        """See gpt.training.engine.Engine. Under ZeRO 3, data ranks gather weights together and do the same work."""
        yield DistributedModel(
            self.stages,
            self.mesh,
            d_model=self.settings.model.d_model,
            dtype=self.dtype,
            data_ranks_together=together or (self.settings.parallel.zero_stage == 3 and not in_turns),
            in_turns=self.settings.parallel.zero_stage == 3 and in_turns,
        )
        self._free_gathered()

    def weights_digest(self) -> str:
        whole = self.fragments.whole
        digests = {one.name: digest(whole(one, one.weight)) for one in self.fragments.all}
        return combine(digests, model_digest, None)

    def all_gather_objects(self, values: list[Any]) -> list[list[Any]]:
        return combine(values, lambda everyone: [found for found in everyone if found], None)

    def check_replicas(self) -> str | None:
        """See gpt.training.engine.Engine. ZeRO 1 and 2 hold the weights that compute on every data rank."""
        if self._replica_check is None:
            held = [] if self.settings.parallel.zero_stage == 3 else self.fragments.all
            self._replica_check = ReplicaCheck(
                [(one.name, one.parameter.data, (one.parameter.data,)) for one in held],
                kinds=("model.",),
                device=self.mesh.device,
            )
        differences = self._replica_check.compare()
        return describe(differences) if differences else None

    def _local_totals(self, *, metrics: int = 0) -> Tensor:
        """Loss, number of targets and metrics collected since the last call, (2 + metrics,) float64 on the device."""
        totals, self.stages[-1].totals = self.stages[-1].totals, []
        return add_totals(totals, metrics=metrics, device=self.mesh.device)

    def _free_gathered(self) -> None:
        """Free weights that ZeRO 3 keeps after a forward pass in case a backward pass follows."""
        if self.settings.parallel.zero_stage == 3:
            self.fragments.free_gathered()
