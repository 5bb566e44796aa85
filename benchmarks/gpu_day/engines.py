"""An engine on one device, as `triaxial train` builds it, and batches for it."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from gpt.losses.batch import Batch
from gpt.model.attention import kernel_order
from gpt.model.config import ModelConfig
from gpt.training.objective import NextToken
from gpt.training.optimizer import OptimizerConfig
from launch.processes.environment import ClusterEnvironment
from launch.processes.rendezvous import join_processes
from parallel.engines.native import NativeEngine
from parallel.engines.settings import EngineSettings
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout

SEED = 1234


@contextmanager
def one_process(device: torch.device) -> Iterator[None]:
    """A process group of this process alone and the attention kernels of training, as `triaxial train` has them."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    join_processes(ClusterEnvironment(), device, timeout_s=600)
    try:
        with kernel_order(device):
            yield
    finally:
        dist.destroy_process_group()


def settings_of(
    model: ModelConfig,
    *,
    micro_batch_size: int,
    sequences: int,
    optimizer: OptimizerConfig,
    world_size: int = 1,
    **parallel: object,
) -> EngineSettings:
    """An engine's settings for sequences of the model's whole context. `parallel`: keys of [parallel]."""
    config = ParallelConfig(**parallel)  # type: ignore[arg-type]
    batch = BatchConfig(micro_batch_size, sequences * model.n_ctx)
    layout = resolve_layout(config, batch, model=model, seq_len=model.n_ctx, world_size=world_size)
    return EngineSettings(model, config, layout, optimizer, micro_batch_size, SEED)


def build(settings: EngineSettings, device: torch.device) -> NativeEngine:
    return NativeEngine(settings, objective=NextToken(), device=device)


def batches(model: ModelConfig, sequences: int) -> Iterator[Batch]:
    """Batches without end, the same in every call: tokens by Zipf's law, so that there is something to learn."""
    weights = 1.0 / torch.arange(1, model.vocab_size + 1)
    for step in itertools.count():
        generator = torch.Generator().manual_seed(step)
        shape = (sequences, model.n_ctx + 1)
        tokens = torch.multinomial(weights, shape[0] * shape[1], replacement=True, generator=generator).view(shape)
        yield Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
