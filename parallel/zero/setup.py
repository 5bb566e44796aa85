"""Load DeepSpeed and start its engine on our process group, without a compiler and without leftovers.

https://www.deepspeed.ai/docs/config-json/ describes the configuration. Its defaults change between releases, so every
key that matters is written here.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from gpt.errors import import_extra
from parallel.engines.settings import EngineSettings
from parallel.layout.mesh import Mesh

MAX_BUCKET = 50_000_000  # elements of a reduction or gather: 200 MB of fp32


@dataclass(frozen=True)
class DataAxis:
    """The groups of a mesh as DeepSpeed asks for them: an `mpu` with methods in Megatron's manner.

    No rank shares a stage's tensors with another, so the model-parallel group is this rank alone.
    """

    mesh: Mesh

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        return self.mesh.data.get_group()

    def get_data_parallel_group_ranks(self) -> list[int]:
        return dist.get_process_group_ranks(self.get_data_parallel_group())

    def get_data_parallel_world_size(self) -> int:
        return self.mesh.layout.data

    def get_data_parallel_rank(self) -> int:
        return self.mesh.data_rank

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        return self.mesh.tensor.get_group()

    def get_model_parallel_world_size(self) -> int:
        return 1

    def get_model_parallel_rank(self) -> int:
        return 0


def start(
    stage: nn.Module, optimizer: torch.optim.Optimizer | None, settings: EngineSettings, mesh: Mesh
) -> Any:  # a deepspeed.DeepSpeedEngine
    """DeepSpeed's engine around a stage whose parameters are on the device in the compute dtype. Collective."""
    with _loaded(mesh) as deepspeed:
        engine, *_ = deepspeed.initialize(
            model=stage,
            optimizer=optimizer,
            mpu=DataAxis(mesh),
            dist_init_required=False,
            config=configuration(settings, device=mesh.device, n_elements=_n_elements(stage)),
        )
        _forget(deepspeed, stage)
    return engine


def destroy(engine: Any) -> None:
    """Remove DeepSpeed's hooks on gradients, which keep a model alive. Does nothing after the process group's end."""
    if dist.is_initialized():
        with _quiet():
            engine.destroy()


def _forget(deepspeed: Any, stage: nn.Module) -> None:
    """Remove the stage from DeepSpeed's global variables, where it would outlive its engine."""
    deepspeed.utils.debug.debug_clear_module_and_param_names()
    modules = deepspeed.runtime.zero.parameter_offload.FWD_MODULE_STACK
    modules[:] = [module for module in modules if module is not stage]  # its forward pass adds it again


def partition(module: nn.Module, settings: EngineSettings, mesh: Mesh) -> None:
    """Cut the parameters that this module itself holds for ZeRO 3, and keep this rank's parts. Collective."""
    own = [parameter for parameter in module.parameters(recurse=False) if not is_partitioned(parameter)]
    if not own:
        return
    with _loaded(mesh) as deepspeed:
        deepspeed.zero.Init(
            module=nn.ParameterList(own),
            data_parallel_group=mesh.data.get_group(),
            mpu=DataAxis(mesh),
            config_dict_or_path=configuration(settings, device=mesh.device, n_elements=_n_elements(module)),
            dtype=own[0].dtype,
        )


@contextmanager
def _loaded(mesh: Mesh) -> Iterator[Any]:
    """The module `deepspeed`, ready to use this mesh's process group. It logs and prints nothing below errors."""
    # Its only way to learn the device. ZeRO 3 reads it in every forward pass, so it stays set.
    os.environ.setdefault("LOCAL_RANK", str(mesh.device.index or 0))
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    with _quiet():
        deepspeed = import_extra("deepspeed", extra="deepspeed")
        accelerator = import_extra(f"deepspeed.accelerator.{mesh.device.type}_accelerator", extra="deepspeed")
        kind = getattr(accelerator, f"{mesh.device.type.upper()}_Accelerator")
        deepspeed.accelerator.set_accelerator(kind())
        # On a CPU it would compile an extension for messages in shared memory, for minutes. gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.utils.logger.setLevel(logging.ERROR)
        deepspeed.comm.comm.cdb = None  # that of an earlier process group
        backend = deepspeed.accelerator.get_accelerator().communication_backend_name()
        deepspeed.comm.init_distributed(dist_backend=backend)  # takes over torch's group
        yield deepspeed


def _n_elements(module: nn.Module) -> int:
    """The elements of a module's whole parameters, which ZeRO 3 may have cut."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in module.parameters())


def is_partitioned(parameter: Any) -> bool:
    """Return whether ZeRO 3 has cut this parameter."""
    return hasattr(parameter, "ds_id")


def configuration(settings: EngineSettings, *, device: torch.device, n_elements: int) -> dict[str, Any]:
    """DeepSpeed's configuration for a stage of `n_elements`.

    Gradients are sums over targets and ranks. The engine divides and clips them itself, so nothing here scales, but
    for the mean over ranks in ZeRO 3, which knows no sum.
    """
    parallel = settings.parallel
    bf16, stage = parallel.precision == "bf16", parallel.zero_stage
    return {
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_accumulation_steps": 1,  # any other number would divide the gradients
        "train_batch_size": settings.micro_batch_size * settings.layout.data,
        "managed_gradient_accumulation": False,
        "gradient_allreduce_op": "mean" if stage == 3 else "sum",
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "gradient_clipping": 0.0,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "fp16": {"enabled": False},
        "bf16": {"enabled": bf16, "immediate_grad_update": True, "check_grad_overflow": False},
        "torch_autocast": {"enabled": False},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**62,
        "wall_clock_breakdown": False,
        "memory_breakdown": False,
        "dump_state": False,
        "flops_profiler": {"enabled": False},
        "zero_optimization": _zero(settings, device=device, n_elements=n_elements),
    }


def _zero(settings: EngineSettings, *, device: torch.device, n_elements: int) -> dict[str, Any]:
    parallel = settings.parallel
    stage, bucket = parallel.zero_stage, max(2, min(MAX_BUCKET, n_elements + n_elements % 2))
    offload = {"device": "cpu", "pin_memory": device.type == "cuda"}
    own_norm = stage < 3 and not parallel.offload and (parallel.precision == "fp32" or stage == 2)
    keys: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": bucket,
        "allgather_partitions": True,
        "allgather_bucket_size": bucket,
        "overlap_comm": stage >= 2 and device.type == "cuda",
        "compute_grad_norm": not own_norm,
        "round_robin_gradients": False,
        "parameter_alignment": False,
        "elastic_checkpoint": False,
        "ignore_unused_parameters": True,
    }
    if parallel.offload:
        keys["offload_optimizer"] = {**offload, "ratio": 1.0}
    if stage == 3:
        keys |= {
            "stage3_prefetch_bucket_size": bucket,
            "stage3_param_persistence_threshold": settings.model.ff_width,  # vectors stay whole
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 1_000_000_000,
            "stage3_module_granularity_threshold": 0,
            "sub_group_size": 1_000_000_000,
            "zero_hpz_partition_size": 1,
            "zero_quantized_weights": False,
            "zero_quantized_gradients": False,
            "memory_efficient_linear": False,  # it would replace torch.nn.functional.linear for the whole process
        }
        if parallel.offload:
            keys["offload_param"] = offload
    return keys


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop messages below errors, of which DeepSpeed logs and prints dozens on its way up."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(level)
