"""Open a run whose model predicts no tokens: as an engine that trains nothing, or as a module in this process."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from gpt.data.config import DataConfig
from gpt.inference.cpu_model import can_pack
from gpt.inference.cpu_sequences import SequenceModel
from gpt.losses.base import OwnTokenValues, TokenValues
from gpt.losses.batch import Batch
from gpt.losses.marks import IGNORE
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.masks import AttentionMask, is_segmented
from gpt.post_training.sequence_scores import Ints, SequenceScorer, TokenScorer
from gpt.tokenizer.tokenizers import Tokenizer, load_tokenizer
from gpt.training.objective import Objective, positions_of
from launch.processes.environment import ClusterEnvironment
from launch.runs.open_model import config_of_newest, inference_layout, join_ranks
from launch.runs.saved_run import device_of, find_checkpoint, model_section, section, tokenizer_file
from parallel.adapters.base import with_bases
from parallel.adapters.merge import read_merged
from parallel.checkpoint.handle import Checkpoint
from parallel.engines.choose import build_engine
from parallel.engines.settings import EngineSettings
from parallel.layout.config import ParallelConfig
from parallel.layout.layout import Layout


@dataclass(frozen=True)
class OpenedEngine:
    """A run with the weights of a checkpoint, in an engine or a module of this process.

    `tensor`: ranks of the tensor axis. `is_main`: the one rank that prints and writes.
    """

    engine: TokenScorer | SequenceScorer
    objective: Objective
    run_directory: Path
    checkpoint: Checkpoint
    model: ModelConfig
    data_config: DataConfig
    tokenizer: Tokenizer
    tokenizer_file: Path
    tensor: int = 1
    notes: tuple[str, ...] = ()
    is_main: bool = True


@contextmanager
def opened_engine(
    args: argparse.Namespace, objective_of: Callable[[dict[str, Any], Path], Objective]
) -> Iterator[OpenedEngine]:
    """Open the run of a command's arguments. Collective: under a launcher every rank must enter the context.

    `objective_of`: makes the objective from the run's configuration and its path. ConfigError: no whole checkpoint, an
    invalid layout, or a tokenizer that does not fit; also what `objective_of` raises.
    """
    environment = ClusterEnvironment.from_environment()
    config = config_of_newest(args.run, args.step)
    objective = objective_of(config, args.run)
    layout = inference_layout(args, environment.world_size, config)
    device = device_of(args.device, local_rank=environment.local_rank if layout.world_size > 1 else None)
    join_ranks(environment, device, config)
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
) -> OpenedEngine:
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
    return OpenedEngine(
        engine=engine,
        objective=objective,
        run_directory=directory,
        checkpoint=checkpoint,
        model=model,
        data_config=data_config,
        tokenizer=load_tokenizer(file),
        tokenizer_file=file,
        tensor=layout.tensor,
        notes=tuple(notes),
        is_main=engine.is_main,
    )


@dataclass(frozen=True)
class LocalScorer:
    """A model on one device as gpt.post_training.sequence_scores.TokenScorer asks for it."""

    module: GPT
    objective: Objective
    data_rank: int = 0
    data_size: int = 1

    @torch.inference_mode()
    def token_values(self, batch: Batch) -> Tensor:
        loss = self.objective.loss(compile=False)
        assert isinstance(loss, TokenValues), "this objective's loss has no values of tokens"
        device = next(self.module.parameters()).device
        batch = batch.to(device)
        mask = self.objective.attention_mask(batch)
        if isinstance(mask, AttentionMask):
            mask = mask.for_device(rows=len(batch), length=batch.inputs.size(1), device=device)
        return loss.values(self.module(batch.inputs, positions=batch.positions, mask=mask), batch)

    def all_gather_objects(self, values: list[Any]) -> list[list[Any]]:
        return [values]


def load_local_scorer(
    checkpoint: Checkpoint, config: ModelConfig, objective: Objective, *, device: torch.device, dtype: torch.dtype
) -> LocalScorer:
    """Read the weights of a checkpoint, with adapters merged into them. Weights of another head are left out."""
    with torch.device("meta"):
        module = GPT(config, embed=objective.front(config), head=objective.head(config))
    module.to(dtype).to_empty(device=device)
    parameters = {f"model.{name}": parameter for name, parameter in module.named_parameters()}
    with torch.no_grad():
        for name, tensor in read_merged(with_bases(checkpoint), parameters):
            parameters[name].copy_(tensor)
    return LocalScorer(module.eval().requires_grad_(False), objective)


@dataclass(frozen=True)
class PackedScorer:
    """A model on a CPU with packed weights, as gpt.post_training.sequence_scores.SequenceScorer asks for it.

    The objective's mask is by text, causal or full.
    """

    module: SequenceModel
    objective: Objective
    data_size: int = 1

    @torch.inference_mode()
    def sequence_values(self, sequences: Sequence[Ints]) -> Tensor:
        """The values (n,) or (n, c) at the last token of each sequence of token ids."""
        loss = self.objective.loss(compile=False)
        assert isinstance(loss, TokenValues), "this objective's loss has no values of tokens"
        lengths = [len(one) for one in sequences]
        segment_ids = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).unsqueeze(0)  # (1, t)
        tokens = torch.from_numpy(np.concatenate(sequences))
        targets = torch.full((1, 1), IGNORE)
        batch = Batch(tokens.unsqueeze(0), targets, positions=positions_of(segment_ids), segment_ids=segment_ids)
        mask = self.objective.attention_mask(batch)
        assert isinstance(mask, AttentionMask), "a mask that is not by text"
        assert is_segmented(mask), "a mask that is not by text"
        ends_only = isinstance(loss, OwnTokenValues) and not loss.values_need_whole_text
        outputs = self.module(tokens, lengths, causal=mask.kind == "causal", ends_only=ends_only)
        values = loss.values(outputs.unsqueeze(0), batch)[0]
        return values if ends_only else values[torch.tensor(lengths).cumsum(0) - 1]

    def all_gather_objects(self, values: list[Any]) -> list[list[Any]]:
        return [values]


def packed_for_scoring(scorer: LocalScorer) -> LocalScorer | PackedScorer:
    """A scorer with packed weights that wastes nothing on padding, where that is possible: on most CPUs.

    Its weights cannot be read, and `scorer` cannot be used afterwards. Elsewhere `scorer` itself.
    """
    weight = next(scorer.module.parameters())
    if not can_pack(weight.device, weight.dtype):
        return scorer
    return PackedScorer(SequenceModel(scorer.module), scorer.objective)
