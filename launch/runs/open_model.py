"""Open the model of a checkpoint for a command: in this process, or distributed over tensor, pipeline and data ranks.

`--nproc N` starts ranks on this machine; torchrun and Slurm start them too. `--parallel.tensor`, `.pipeline`, `.data`
and `.split` set the layout, which need not be that of training.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gpt.data.config import DataConfig
from gpt.errors import ConfigError
from gpt.inference.model import InferenceModel, LocalModel
from gpt.model.config import ModelConfig
from gpt.tokenizer.special_tokens import SpecialTokens, special_tokens_of
from gpt.tokenizer.tokenizers import Tokenizer, load_tokenizer
from launch.config.recipe import apply_overrides, build
from launch.config.run_arguments import BEST, LAYOUT_KEYS, find_checkpoint_folder
from launch.processes.environment import ClusterEnvironment, bootstrap_in_this_process
from launch.processes.local_launch import launch_local
from launch.processes.rank_process import keep_freed_memory
from launch.processes.rendezvous import join_processes
from launch.runs.imported_run import HUGGING_FACE
from launch.runs.saved_run import (
    DTYPES,
    SavedRun,
    device_of,
    load_run,
    model_section,
    open_run,
    section,
    tokenizer_file,
)
from parallel.checkpoint.folders import list_checkpoints, step_of
from parallel.checkpoint.handle import read_checkpoint_header
from parallel.errors import CheckpointError
from parallel.inference.model import load_distributed_model
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import Layout, resolve_layout
from parallel.layout.mesh import build_mesh


@dataclass(frozen=True)
class OpenedModel:
    """A checkpoint's model, ready to use, and its run. `is_main`: the one rank that prints and writes."""

    model: InferenceModel
    saved: SavedRun
    is_main: bool


@dataclass(frozen=True)
class ModelPreview:
    """The facts that checks of a request need, before a large model is read."""

    model_config: ModelConfig
    tokenizer: Tokenizer
    special: SpecialTokens


def start_ranks(args: argparse.Namespace) -> int:
    """Start `--nproc` ranks of this command with the same arguments; return the exit status."""
    inference_layout(args, args.nproc, config_of_newest(args.run, args.step))  # raises errors before any process starts
    words: Sequence[str] = args.given
    return launch_local(args.nproc, words)


@contextmanager
def opened_model(args: argparse.Namespace) -> Iterator[OpenedModel]:
    """Open the model of a command's arguments. Collective: under a launcher every rank must enter the context.

    ConfigError as for `open_run`, and for an invalid layout; both before any process communicates.
    """
    environment = ClusterEnvironment.from_environment()
    config = config_of_newest(args.run, args.step)
    layout = inference_layout(args, environment.world_size, config)
    if layout.world_size == 1:
        loaded = load_run(args.run, step=args.step, device=device_of(args.device), dtype=DTYPES[args.dtype])
        yield OpenedModel(LocalModel(loaded.model), loaded.saved, is_main=True)
        return
    device = device_of(args.device, local_rank=environment.local_rank)
    join_ranks(environment, device, config)
    saved = open_run(args.run, step=args.step)
    model = load_distributed_model(
        saved.checkpoint,
        saved.model_config,
        build_mesh(layout, device),
        dtype=DTYPES[args.dtype],
    )
    yield OpenedModel(model, saved, is_main=environment.rank == 0)
    dist.destroy_process_group()  # not after an error: it would wait for a peer inside a collective


def join_ranks(environment: ClusterEnvironment, device: torch.device, config: dict[str, Any]) -> None:
    """Prepare this process for its device and join the others; `config` gives the time limit of a collective."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif environment.world_size > 1:  # one process alone may serve for weeks, and keeps malloc's own rules
        keep_freed_memory()
    bootstrap_in_this_process()
    join_processes(environment, device, timeout_s=collective_timeout_s(config))


def preview_model(args: argparse.Namespace) -> ModelPreview:
    """Read the small files of the checkpoint that will most likely be used. Any one rank may call this.

    ConfigError as for `open_run`.
    """
    config = config_of_newest(args.run, args.step)
    folder, _ = find_checkpoint_folder(args.run)
    run_directory = folder.parent if folder.name == "checkpoints" else folder
    file = tokenizer_file(run_directory, section(DataConfig, config, "data"))
    tokenizer = load_tokenizer(file)
    return ModelPreview(
        model_config=model_section(config),
        tokenizer=tokenizer,
        special=special_tokens_of(run_directory / HUGGING_FACE, file, tokenizer),
    )


def inference_layout(args: argparse.Namespace, world_size: int, config: dict[str, Any]) -> Layout:
    """The layout of the arguments, by the rules of training without micro-batches."""
    table = apply_overrides({}, _overrides(args))
    for table_name, values in table.items():
        for key in values if isinstance(values, dict) else ():
            if table_name != "parallel" or key not in LAYOUT_KEYS:
                raise ConfigError(
                    f"--{table_name}.{key} is invalid: a trained model cannot be changed, except its layout. Use "
                    + ", ".join(f"--parallel.{name}" for name in LAYOUT_KEYS)
                )
    fixed = {"zero_stage": 0, "schedule": "gpipe"}
    parallel = build(ParallelConfig, {**fixed, **table.get("parallel", {})}, where="parallel")
    model = model_section(config)
    # the last tokens of a context are padded to equal shards of tensor ranks, so n_ctx need not be divisible
    divisible = replace(model, n_ctx=-(-model.n_ctx // max(1, parallel.tensor)) * max(1, parallel.tensor))
    batch = BatchConfig(micro_batch_size=1, global_batch_tokens=world_size * divisible.n_ctx)
    return resolve_layout(parallel, batch, model=divisible, seq_len=divisible.n_ctx, world_size=world_size)


def _overrides(args: argparse.Namespace) -> list[str]:
    return list(getattr(args, "overrides", ()))


def config_of_newest(path: Path, step: int | None) -> dict[str, Any]:
    """The configuration in the checkpoint that will most likely be used. It costs reading the small files.

    Later, all ranks together determine which checkpoint is whole.
    """
    folder, one = find_checkpoint_folder(path)
    found = [one] if one is not None else list_checkpoints(folder)
    for candidate in found:
        if step in (None, BEST) or step_of(candidate.name) == step:
            try:
                config = read_checkpoint_header(candidate).state.get("config")
            except CheckpointError:
                continue
            if isinstance(config, dict):
                return config
    open_run(path, step=step)  # raises the error
    raise AssertionError(f"{path}: a checkpoint that can be opened has a configuration")


def collective_timeout_s(config: dict[str, Any]) -> int:
    """The timeout of collectives in the run's own recipe."""
    found = config.get("run", {}).get("collective_timeout_s")
    return found if type(found) is int and 1 <= found <= 10**6 else 600
