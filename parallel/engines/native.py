"""The default engine: DTensor, torch.distributed.pipelining and FSDP2 on one mesh, on CUDA (NCCL) or CPU (gloo)."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from gpt.config import ModelConfig
from gpt.engine import Batch, Totals
from gpt.loss import Loss
from gpt.optimizer import OptimizerConfig, build_optimizer
from parallel import checkpoint
from parallel.gradients import global_norm, scale_gradients, sum_tied_gradients
from parallel.initialisation import initialise_shards
from parallel.layout import Layout, ParallelConfig
from parallel.mesh import build_mesh
from parallel.pipeline_parallel import Pipeline
from parallel.stage import build_stage, canonical_parameters


@dataclass(frozen=True)
class EngineSettings:
    """All that decides what a native engine builds."""

    model: ModelConfig
    parallel: ParallelConfig
    layout: Layout
    optimizer: OptimizerConfig
    micro_batch_size: int
    seq_len: int
    seed: int


class NativeEngine:
    """See gpt.engine.Engine. Needs an initialised default process group of the layout's size, of one process too."""

    def __init__(self, settings: EngineSettings, *, loss: Loss, device: torch.device) -> None:
        self.settings = settings
        self.mesh = build_mesh(settings.layout, device)
        self.stage = build_stage(settings.model, settings.parallel, self.mesh, loss)
        self.parameters = canonical_parameters(self.stage)
        initialise_shards(self.parameters, settings.model, seed=settings.seed)
        self.optimizer = build_optimizer(self.parameters, settings.optimizer)
        self._allocate_optimizer_state()
        self.pipeline = (
            Pipeline(self.stage, settings.model, self.mesh, settings.parallel) if settings.layout.pipeline > 1 else None
        )
        self.data_rank, self.data_size = self.mesh.data_rank, settings.layout.data
        self.is_main = dist.get_rank() == 0
        self._tokens_in_gradients = 0
        self._tied_copy = self._find_tied_copy()

    def forward_backward(self, batch: Batch) -> Totals:
        inputs, targets = (x.to(self.mesh.device, non_blocking=True) for x in batch)
        self.stage.totals.clear()
        if self.pipeline is not None:
            self.pipeline.forward_backward(inputs, targets, micro_batches=self.settings.layout.micro_batches)
        else:
            self._accumulate(inputs, targets)
        totals = self._reduce_totals()
        self._tokens_in_gradients += totals.tokens
        return totals

    def optimizer_step(self, learning_rate: float) -> float:
        parameters = [parameter for _, parameter in self.parameters]
        if self._tied_copy is not None:
            sum_tied_gradients(self._tied_copy, self.mesh)
        elsewhere = {self._tied_copy} if self._tied_copy is not None and not self.mesh.is_first_stage else set()
        tokens = max(1, self._tokens_in_gradients)
        norm = global_norm(parameters, self.mesh, counted_elsewhere=elsewhere) / tokens
        clip = min(1.0, self.settings.optimizer.max_gradient_norm / (norm + 1e-6))
        scale_gradients(parameters, clip / tokens)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._tokens_in_gradients = 0
        return norm

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> Totals:
        self.stage.totals.clear()
        for batch in batches:
            inputs, targets = (x.to(self.mesh.device) for x in batch)
            if self.pipeline is not None:
                self.pipeline.forward(inputs, targets)
            else:
                self.stage(inputs, targets)
        self._reshard()
        return self._reduce_totals()

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs.to(self.mesh.device)
        tensor = self.settings.layout.tensor
        length = inputs.size(1)
        padded = torch.nn.functional.pad(inputs, (0, -length % tensor))  # sequence parallelism needs equal shares
        logits = self.pipeline.forward(padded) if self.pipeline is not None else self.stage(padded)
        self._reshard()
        return logits[:, :length].float()

    def any(self, flag: bool) -> bool:
        raised = torch.tensor(int(flag), device=self.mesh.device)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return bool(raised)

    def save(self, directory: Path, *, step: int, state: dict[str, object], keep_last: int) -> Path:
        state = {**state, "optimizer_steps": self._optimizer_steps()}
        return checkpoint.save(directory, step=step, tensors=self._tensors(), state=state, keep_last=keep_last)

    def load(self, path: Path, *, verified: bool = False) -> dict[str, object]:
        state = checkpoint.read_state(path)
        checkpoint.load(path, tensors=self._tensors(), complete=True, verified=verified)
        steps = state["optimizer_steps"]
        assert isinstance(steps, (int, float))
        for parameter_state in self.optimizer.state.values():
            parameter_state["step"].fill_(steps)
        return state

    def _accumulate(self, inputs: Tensor, targets: Tensor) -> None:
        """Micro-batches one after the other; gradients are reduced over data ranks after the last one only."""
        assert isinstance(self.stage, FSDPModule)
        pairs = list(
            zip(
                torch.split(inputs, self.settings.micro_batch_size),
                torch.split(targets, self.settings.micro_batch_size),
                strict=True,
            )
        )
        for i, (x, y) in enumerate(pairs):
            last = i == len(pairs) - 1
            self.stage.set_is_last_backward(last)
            self.stage.set_requires_gradient_sync(last)
            self.stage.set_reshard_after_backward(last or self.settings.parallel.zero_stage == 3)
            self.stage(x, y).backward()

    def _reduce_totals(self) -> Totals:
        """Sum the losses gathered by the last stages. Collective over all ranks (two numbers, a sync point)."""
        sums = torch.zeros(2, dtype=torch.float64)
        if self.stage.totals and self.mesh.tensor_rank == 0:
            sums[0] = torch.stack([total for total, _ in self.stage.totals]).double().sum()
            sums[1] = torch.stack([count for _, count in self.stage.totals]).sum()
        sums = sums.to(self.mesh.device)
        dist.all_reduce(sums)
        self.stage.totals.clear()
        return Totals(float(sums[0]), int(sums[1]))

    def _reshard(self) -> None:
        """Free gathered weights, so that none stay behind when the sharded ones change without a backward."""
        for module in self.stage.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def _find_tied_copy(self) -> torch.nn.Parameter | None:
        """The tied weight, where it is held twice and this rank holds one of the two."""
        mesh = self.mesh
        if self.pipeline is None or not self.settings.model.tied or not (mesh.is_first_stage or mesh.is_last_stage):
            return None
        return dict(self.parameters)["embed.tokens.weight"]

    def _allocate_optimizer_state(self) -> None:
        for _, parameter in self.parameters:
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=self.mesh.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def _optimizer_steps(self) -> int:
        return int(next(iter(self.optimizer.state.values()))["step"])

    def _tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint holds, by name; a tied weight is held twice under one name and written once."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters:
            state = self.optimizer.state[parameter]
            tensors[f"model.{name}"] = parameter.data
            tensors[f"optimizer.exp_avg.{name}"] = state["exp_avg"]
            tensors[f"optimizer.exp_avg_sq.{name}"] = state["exp_avg_sq"]
        return tensors
