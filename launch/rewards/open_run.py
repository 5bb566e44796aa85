"""Open a reward run as an engine that trains nothing, on any layout."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from gpt.data.config import DataConfig
from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from gpt.model.heads import ScalarHead
from gpt.post_training.sequence_scores import Floats, Ints, row_tokens_for, score_sequences
from gpt.tokenizer.tokenizers import Tokenizer, load_tokenizer
from gpt.training.engine import Engine
from gpt.training.objective import Objective
from launch.processes.environment import ClusterEnvironment, bootstrap_in_this_process
from launch.processes.rendezvous import join_processes
from launch.runs.open_model import collective_timeout_s, config_of_newest, inference_layout
from launch.runs.saved_run import device_of, find_checkpoint, model_section, objective_section, section, tokenizer_file
from parallel.checkpoint.handle import Checkpoint
from parallel.engines.choose import build_engine
from parallel.engines.settings import EngineSettings
from parallel.layout.config import ParallelConfig
from parallel.layout.layout import Layout


@dataclass(frozen=True)
class OpenedReward:
    """A reward run's engine with the weights of a checkpoint. `is_main`: the one rank that prints and writes."""

    engine: Engine
    run_directory: Path
    checkpoint: Checkpoint
    model: ModelConfig
    data_config: DataConfig
    tokenizer: Tokenizer
    tokenizer_file: Path
    tensor: int
    batch_tokens: int
    notes: tuple[str, ...]
    is_main: bool

    def scores(self, sequences: Sequence[Ints], *, advance: Callable[[int], None] = lambda n: None) -> Floats:
        """The reward of each sequence of token ids, (n,), on every rank. Every rank must call it.

        NaN for sequences that are empty or longer than model.n_ctx.
        """
        scores = np.full(len(sequences), np.nan)
        fits = [i for i, ids in enumerate(sequences) if 0 < len(ids) <= self.model.n_ctx]
        if not fits:
            return scores
        kept = [sequences[i] for i in fits]
        row_tokens = row_tokens_for([len(ids) for ids in kept], multiple=self.tensor)
        rows = max(1, self.batch_tokens // row_tokens)
        scores[fits] = score_sequences(self.engine, kept, row_tokens=row_tokens, rows_at_once=rows, advance=advance)
        return scores


@contextmanager
def opened_reward(args: argparse.Namespace) -> Iterator[OpenedReward]:
    """Open the reward run of a command's arguments. Collective: under a launcher every rank must enter the context.

    ConfigError: no whole checkpoint, not a reward run, an invalid layout, or a tokenizer that does not fit.
    """
    environment = ClusterEnvironment.from_environment()
    config = config_of_newest(args.run, args.step)
    objective = reward_objective(config, args.run)
    layout = inference_layout(args, environment.world_size, config)
    device = device_of(args.device, local_rank=environment.local_rank if layout.world_size > 1 else None)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    bootstrap_in_this_process()
    join_processes(environment, device, timeout_s=collective_timeout_s(config))
    try:
        yield _load(args, config, objective, layout, device)
    except BaseException:
        if layout.world_size > 1:  # leaving the group would wait for a peer inside a collective
            raise
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _load(
    args: argparse.Namespace, config: dict[str, Any], objective: Objective, layout: Layout, device: torch.device
) -> OpenedReward:
    """Verify the checkpoint and load its weights into an engine. Every rank must call it."""
    directory, checkpoint, notes = find_checkpoint(Path(args.run), args.step)
    model = model_section(config)
    data_config = section(DataConfig, config, "data")
    file = tokenizer_file(directory, data_config)
    parallel = ParallelConfig(
        tensor=layout.tensor,
        pipeline=layout.pipeline,
        data=layout.data,
        schedule="gpipe",
        precision="bf16" if args.dtype == "bfloat16" else "fp32",
    )
    settings = EngineSettings(model, parallel, layout, optimizer=None, micro_batch_size=1, seed=0)
    engine = build_engine(settings, objective=objective, device=device, init_weights=False)
    engine.checkpoints.shared.load_weights(checkpoint)
    return OpenedReward(
        engine=engine,
        run_directory=directory,
        checkpoint=checkpoint,
        model=model,
        data_config=data_config,
        tokenizer=load_tokenizer(file),
        tokenizer_file=file,
        tensor=layout.tensor,
        batch_tokens=args.batch_tokens,
        notes=tuple(notes),
        is_main=engine.is_main,
    )


def reward_objective(config: dict[str, Any], run: Path) -> Objective:
    """The objective of a run's configuration. ConfigError if its model gives no reward."""
    objective = objective_section(config).build(z_loss=0.0)
    with torch.device("meta"):
        if isinstance(objective.head(model_section(config)), ScalarHead):
            return objective
    raise ConfigError(f"{run} is not a reward run: its model predicts tokens. Train one with objective.kind = 'reward'")
