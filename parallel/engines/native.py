"""The default engine: DTensor, torch.distributed.pipelining and FSDP2 on one mesh, on CUDA (NCCL) or CPU (gloo)."""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from gpt.inference.generation import Continuation, generate
from gpt.inference.model import InferenceModel
from gpt.inference.sampling import GREEDY, Sampling
from gpt.losses.base import Loss
from gpt.training.engine import Batch, StepResult, Totals
from gpt.training.optimizer import build_optimizer
from parallel.agreement import all_gather_objects
from parallel.axes.gradients import scale_gradients, squared_norm, sum_tied_gradients
from parallel.axes.initialisation import initialise_shards
from parallel.axes.pipeline_parallel import Pipeline
from parallel.axes.stage import canonical_parameters
from parallel.engines.native_checkpoints import MOMENTS, EngineTensors, open_checkpoints
from parallel.engines.settings import EngineSettings, sharding_signature
from parallel.health.replica_check import ReplicaCheck, describe
from parallel.inference.model import DistributedModel
from parallel.layout.mesh import Mesh, build_mesh
from parallel.parallelize import build_stage


class NativeEngine:
    """See gpt.engine.Engine. Needs an initialised default process group of the layout's size, of one process too.

    `fill` False leaves weights as allocated, for a checkpoint to be loaded. `mesh`: the layout's, where it is there
    already; several engines can share one.
    """

    def __init__(
        self,
        settings: EngineSettings,
        *,
        loss: Loss,
        device: torch.device,
        fill: bool = True,
        mesh: Mesh | None = None,
    ) -> None:
        self.settings, self.loss = settings, loss
        self.mesh = build_mesh(settings.layout, device) if mesh is None else mesh
        self.stages = [
            build_stage(settings.model, settings.parallel, self.mesh, loss, index=index) for index in self.mesh.stages
        ]
        self.parameters = [named for stage in self.stages for named in canonical_parameters(stage)]
        self._tied_copies = self._find_tied_copies()
        if fill:
            initialise_shards(self.parameters, settings.model, seed=settings.seed)
        self.optimizer = build_optimizer(self.parameters, settings.optimizer)
        self._allocate_optimizer_state()
        self.pipeline = (
            Pipeline(self.stages, settings.model, self.mesh, settings.parallel)
            if settings.layout.pipeline > 1
            else None
        )
        self._replica_check: ReplicaCheck | None = None
        self.tensors = EngineTensors(self.parameters, self.optimizer, self._tied_copies)
        self.checkpoints = open_checkpoints(
            self.tensors, device=self.mesh.device, sharding=sharding_signature(settings)
        )
        self.data_rank, self.data_size = self.mesh.data_rank, settings.layout.data
        self.is_main = dist.get_rank() == 0

    def forward_backward(self, batch: Batch) -> None:
        inputs, targets = (x.to(self.mesh.device) for x in batch)
        if self.pipeline is not None:
            micro_batches = inputs.size(0) // self.settings.micro_batch_size
            self.pipeline.forward_backward(inputs, targets, micro_batches=micro_batches)
        else:
            self._accumulate(inputs, targets)

    def optimizer_step(
        self, learning_rate: float, *, flags: tuple[bool, ...] = (), discard: bool = False
    ) -> StepResult:
        parameters = [parameter for _, parameter in self.parameters]
        if self._tied_copies:
            sum_tied_gradients(self._tied_copies, self.mesh)
        elsewhere = set(self._tied_copies[1:] if 0 in self.mesh.stages else self._tied_copies)
        squared = squared_norm(parameters, self.mesh, counted_elsewhere=elsewhere)
        raised = torch.tensor((discard, *flags), dtype=torch.float64, device=squared.device)
        names = self.loss.metric_names
        numbers = torch.cat((squared.view(1), self._local_totals(metrics=len(names)), raised))
        dist.all_reduce(numbers)
        total, loss_sum, count, *rest = numbers.tolist()
        tokens = max(count, 1.0)
        metrics = {name: value / tokens for name, value in zip(names, rest, strict=False)}
        norm = math.sqrt(total) / tokens
        finite = math.isfinite(loss_sum) and math.isfinite(norm)  # alike on all ranks: they added up the same numbers
        discarded, *raised_by_any = (n > 0 for n in rest[len(names) :])
        if finite and not discarded:
            clip = min(1.0, self.settings.optimizer.max_gradient_norm / (norm + 1e-6))
            scale_gradients(parameters, clip / tokens)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(
            Totals(loss_sum, int(count)),
            norm,
            skipped=not finite and not discarded,
            discarded=discarded,
            flags=tuple(raised_by_any),
            metrics=metrics,
        )

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> Totals:
        assert not any(stage.totals for stage in self.stages), "evaluate between forward_backward and optimizer_step"
        for batch in batches:
            inputs, targets = (x.to(self.mesh.device) for x in batch)
            if self.pipeline is not None:
                self.pipeline.forward(inputs, targets)
            else:
                self.stages[0](inputs, targets)
        self._reshard()
        numbers = self._local_totals()
        dist.all_reduce(numbers)
        loss_sum, count = numbers.tolist()
        return Totals(loss_sum, int(count))

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs.to(self.mesh.device)
        tensor = self.settings.layout.tensor
        length = inputs.size(1)
        padded = torch.nn.functional.pad(inputs, (0, -length % tensor))  # sequence parallelism needs equal shares
        logits = self.pipeline.forward(padded) if self.pipeline is not None else self.stages[0](padded)
        self._reshard()
        return logits[:, :length].float()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        stop_ids: Collection[int] = (),
        n_ids: int | None = None,
    ) -> list[Continuation]:
        """See gpt.inference.generation. All ranks pass equal arguments and get equal results; data ranks all do the
        same work."""
        with self._model(data_ranks_together=True) as model:
            return generate(
                model,
                prompts,
                n_ctx=self.settings.model.n_ctx,
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                seed=seed,
                stop_ids=stop_ids,
                n_ids=n_ids,
            )

    @contextmanager
    def as_model(self) -> Iterator[InferenceModel]:
        """See gpt.engine.Engine. Under ZeRO 3 data ranks gather each block's weights together and so do the same work;
        else each gathers its stages' once and works alone."""
        together = self.settings.parallel.zero_stage == 3
        if not together:
            for module in self._sharded_modules():
                module.unshard()
        with self._model(data_ranks_together=together) as model:
            yield model

    @contextmanager
    def _model(self, *, data_ranks_together: bool) -> Iterator[DistributedModel]:
        """The stages as they are. Compiled blocks run as they are written: shapes change with each token."""
        settings = self.settings
        dtype = torch.bfloat16 if settings.parallel.precision == "bf16" else torch.float32
        with torch.compiler.set_stance("force_eager"):
            yield DistributedModel(
                self.stages,
                self.mesh,
                d_model=settings.model.d_model,
                dtype=dtype,
                data_ranks_together=data_ranks_together,
            )
        self._reshard()

    def exchange(self, values: list[Any]) -> list[list[Any]]:
        return all_gather_objects(values, None)

    def check_replicas(self) -> str | None:
        if self._replica_check is None:
            self._replica_check = ReplicaCheck(
                [(name, p, (p.data, *(self.optimizer.state[p][k] for k in MOMENTS))) for name, p in self.parameters],
                kinds=("model.", *(f"optimizer.{key}." for key in MOMENTS)),
                device=self.mesh.device,
            )
        differences = self._replica_check.compare()
        return describe(differences) if differences else None

    def _accumulate(self, inputs: Tensor, targets: Tensor) -> None:
        """Micro-batches one after the other. ZeRO 2 and 3 reduce gradients into their shards after each, the others
        keep whole ones and reduce after the last; copies of shards (hybrid) are added up after the last in any case."""
        model, size, zero = self.stages[0], self.settings.micro_batch_size, self.settings.parallel.zero_stage
        assert isinstance(model, FSDPModule)
        pairs = list(zip(torch.split(inputs, size), torch.split(targets, size), strict=True))
        for i, (x, y) in enumerate(pairs):
            last = i == len(pairs) - 1
            model.set_is_last_backward(last)
            model.set_requires_gradient_sync(last or zero >= 2)
            model.set_requires_all_reduce(last)
            model.set_reshard_after_backward(last or zero == 3)
            model(x, y).backward()

    def _local_totals(self, *, metrics: int = 0) -> Tensor:
        """Loss, number of targets and so many metrics gathered here since the last call, (2 + metrics,) float64 on the
        device; one rank of those that computed the same loss has them, the others zeros."""
        totals, self.stages[-1].totals = self.stages[-1].totals, []
        if not totals or self.mesh.tensor_rank != 0:
            return torch.zeros(2 + metrics, dtype=torch.float64, device=self.mesh.device)
        return torch.stack([torch.stack([number.double() for number in numbers]) for numbers in totals]).sum(0)

    def _reshard(self) -> None:
        """Free gathered weights, so that none stay behind when the sharded ones change without a backward."""
        for module in self._sharded_modules():
            module.reshard()

    def _sharded_modules(self) -> Iterator[FSDPModule]:
        for stage in self.stages:
            for module in stage.modules():
                if isinstance(module, FSDPModule):
                    yield module

    def _find_tied_copies(self) -> list[torch.nn.Parameter]:
        """The tied weight, where the first and the last stage hold a copy each: the copies of this rank, in order."""
        if self.settings.layout.stages == 1 or not self.settings.model.tied:
            return []
        return [parameter for name, parameter in self.parameters if name == "embed.tokens.weight"]

    def _allocate_optimizer_state(self) -> None:
        for _, parameter in self.parameters:
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                **{key: torch.zeros_like(parameter) for key in MOMENTS},
            }
