"""torchtitan's Llama 3 with its own tensor, pipeline and data parallelism, driven as its trainer does.

torchtitan 0.2 takes a machine without an accelerator for a CUDA one; its mesh is told otherwise.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from gpt.errors import import_extra
from gpt.losses.batch import Batch
from gpt.model.config import ModelConfig
from gpt.training.optimizer import OptimizerConfig
from parallel.layout.config import BatchConfig


def torchtitan_step(
    config: ModelConfig,
    optimizer: OptimizerConfig,
    sizes: dict[str, int],
    *,
    batch: BatchConfig,
    compile: bool,
    device: str = "cpu",
    losses: list[torch.Tensor] | None = None,
) -> Callable[[Batch], None]:
    """A function that trains one step on this data rank's share of a batch. `sizes`: tensor, pipeline, data.

    Every rank of the default process group calls it. In fp32, unless the caller's autocast says otherwise: that is
    how torchtitan computes where it does not shard. `losses` gets the share of each micro-batch in the mean loss; not
    with a pipeline.
    """
    import_extra("torchtitan", extra="benchmarks")
    from torchtitan.components.loss import build_cross_entropy_loss
    from torchtitan.distributed import ParallelDims, parallel_dims
    from torchtitan.distributed.utils import clip_grad_norm_, get_train_context

    parallel_dims.device_type = device
    world_size = dist.get_world_size()
    dims = ParallelDims(
        1, sizes["data"], cp=1, tp=sizes["tensor"], pp=sizes["pipeline"], ep=1, etp=1, world_size=world_size
    )
    dims.build_mesh()
    job = _job(config, sizes, batch=batch, compile=compile)
    loss_of = build_cross_entropy_loss(job)
    parts, schedule = _build(config, job, dims, loss_of, torch.device(device))
    parameters = [p for part in parts for p in part.parameters()]
    adam = torch.optim.AdamW(
        parameters, lr=optimizer.learning_rate, betas=(optimizer.beta1, optimizer.beta2), weight_decay=0.1, fused=True
    )
    context = get_train_context(dims.tp_enabled)

    size = batch.micro_batch_size

    def step(batch: Batch) -> None:
        adam.zero_grad()
        tokens = torch.tensor(batch.targets.numel())
        if dims.dp_enabled:
            dist.all_reduce(tokens)
        with context():
            if schedule is not None:
                _pipeline_step(schedule, batch)
            else:
                pairs = zip(batch.inputs.split(size), batch.targets.split(size), strict=True)
                for inputs, targets in pairs:
                    loss = loss_of(parts[0](inputs), targets) / tokens
                    loss.backward()
                    if losses is not None:
                        losses.append(loss.detach())
        clip_grad_norm_(parameters, optimizer.max_gradient_norm, foreach=True, pp_mesh=dims.get_optional_mesh("pp"))
        adam.step()

    return step


def _job(config: ModelConfig, sizes: dict[str, int], *, batch: BatchConfig, compile: bool) -> Any:
    from torchtitan.config import JobConfig

    job = JobConfig()
    job.training.seq_len = config.n_ctx
    at_once = batch.global_batch_tokens // config.n_ctx if sizes["pipeline"] > 1 else batch.micro_batch_size
    job.training.local_batch_size = at_once
    job.training.mixed_precision_param = "float32"
    job.compile.enable = compile
    job.activation_checkpoint.mode = "none"
    job.parallelism.pipeline_parallel_degree = sizes["pipeline"]
    job.parallelism.pipeline_parallel_schedule = "1F1B"
    job.parallelism.pipeline_parallel_microbatch_size = batch.micro_batch_size
    return job


def _build(config: ModelConfig, job: Any, dims: Any, loss_of: Any, device: torch.device) -> tuple[list[Any], Any]:
    """The modules of this rank, and the schedule where there is a pipeline."""
    from torchtitan.distributed.pipeline_parallel import pipeline_llm
    from torchtitan.models.llama3.infra.parallelize import parallelize_llama
    from torchtitan.models.llama3.model.args import TransformerModelArgs
    from torchtitan.models.llama3.model.model import Transformer

    args = TransformerModelArgs(
        dim=config.d_model,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        vocab_size=config.padded_vocab_size,
        max_seq_len=config.n_ctx,
    )
    schedule = None
    with torch.device("meta"):
        model: Any = Transformer(args)
    count = sum(p.numel() for p in model.parameters())
    assert count == config.parameters, f"torchtitan's model has {count} parameters, ours {config.parameters}"
    if dims.pp_enabled:
        schedule, parts, _, _ = pipeline_llm(model, dims, job, device, args, parallelize_llama, loss_of)
    else:
        parts = [parallelize_llama(model, dims, job)]
    for part in parts:
        part.to_empty(device=device)
        with torch.no_grad():
            part.init_weights(buffer_device=device)
        for module in part.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)  # gloo lacks the scaled sum that FSDP else takes
    return parts, schedule


def _pipeline_step(schedule: Any, batch: Batch) -> None:
    stage = schedule._stage
    inputs = (batch.inputs,) if stage.is_first else ()
    targets, losses = (batch.targets, []) if stage.is_last else (None, None)
    schedule.step(*inputs, target=targets, losses=losses, return_outputs=False)
