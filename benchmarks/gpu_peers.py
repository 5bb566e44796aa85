"""The contenders of gpu.py that need more than a model: our engine, a checkout of nanoGPT, torchtitan."""

import importlib.util
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from gpt.losses.batch import Batch
from gpt.model.attention import kernel_order
from gpt.model.config import ModelConfig
from gpt.training.objective import NextToken
from gpt.training.optimizer import OptimizerConfig
from parallel.engines.native import NativeEngine
from parallel.engines.settings import EngineSettings
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout

Step = Callable[[Batch], float]


def join(device: torch.device) -> None:
    """A process group of this process alone."""
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=HashStore(), rank=0, world_size=1)


def our_step(
    model: ModelConfig,
    optimizer: OptimizerConfig,
    batch: BatchConfig,
    *,
    device: torch.device,
    seed: int,
    precision: str = "bf16",
) -> Step:
    """The engine that `triaxial train` builds for one process, and what its loop calls for a step."""
    join(device)
    device = torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device
    parallel = ParallelConfig(precision=precision, compile=True)  # type: ignore[arg-type]
    layout = resolve_layout(parallel, batch, model=model, seq_len=model.n_ctx, world_size=1)
    settings = EngineSettings(model, parallel, layout, optimizer, batch.micro_batch_size, seed)
    engine = NativeEngine(settings, objective=NextToken(), device=device)

    def step(batch: Batch) -> float:
        with kernel_order(device):
            engine.forward_backward(batch)
            return engine.optimizer_step(optimizer.learning_rate).loss.mean

    return step


def nanogpt_step(
    folder: Path, config: ModelConfig, optimizer: OptimizerConfig, *, micro_batch_size: int, device: torch.device
) -> Step:
    """nanoGPT's model and optimizer, driven as its train.py does: autocast, accumulation, clipping, compile."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks it up
    spec.loader.exec_module(module)
    model = module.GPT(
        module.GPTConfig(
            block_size=config.n_ctx,
            vocab_size=config.padded_vocab_size,
            n_layer=config.n_layers,
            n_head=config.n_heads,
            n_embd=config.d_model,
            dropout=0.0,
            bias=True,
        )
    ).to(device)
    betas = (optimizer.beta1, optimizer.beta2)
    adam = model.configure_optimizers(optimizer.weight_decay, optimizer.learning_rate, betas, device.type)
    compiled = torch.compile(model)

    def step(batch: Batch) -> float:
        parts = list(batch.to(device).split(micro_batch_size))
        total = torch.zeros((), device=device)
        for part in parts:
            with torch.autocast(device.type, dtype=torch.bfloat16):
                _, loss = compiled(part.inputs, part.targets)
                loss = loss / len(parts)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer.max_gradient_norm)
        adam.step()
        adam.zero_grad(set_to_none=True)
        return total.item()

    return step


def torchtitan_llama(
    config: ModelConfig, optimizer: OptimizerConfig, batch: BatchConfig, *, device: torch.device
) -> Step:
    """torchtitan's Llama 3 on one device, as its trainer runs it without a data axis: compiled blocks, autocast."""
    from torchtitan_peer import torchtitan_step

    join(device)
    sizes = {"tensor": 1, "pipeline": 1, "data": 1}
    losses: list[torch.Tensor] = []
    step = torchtitan_step(config, optimizer, sizes, batch=batch, compile=True, device=device.type, losses=losses)
    autocast = torch.autocast(device.type, dtype=torch.bfloat16) if device.type == "cuda" else nullcontext()

    def one_step(batch: Batch) -> float:
        losses.clear()
        with autocast:
            step(batch.to(device))
        return float(torch.stack(losses).sum())

    return one_step
