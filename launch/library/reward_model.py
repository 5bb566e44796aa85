"""A trained reward model with its tokenizer, in one process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_prep.conversations.conversation import UnusableRecord, check_turns
from data_prep.conversations.turns import turns_of
from gpt.data.config import DataConfig
from gpt.errors import ConfigError
from gpt.losses.batch import Batch
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.model.heads import ScalarHead
from gpt.model.masks import document_mask
from gpt.post_training.sequence_scores import Ints, row_tokens_for, score_sequences
from launch.rewards.open_run import reward_objective
from launch.runs.chat_format import ChattingRun, chat_encoder
from launch.runs.saved_run import DTYPES, device_of, find_checkpoint, model_section, section, tokenizer_file
from parallel.adapters.base import with_bases
from parallel.adapters.merge import read_merged

_BATCH_TOKENS = 8192


class TrainedReward:
    """A reward model with its tokenizer, on one device. `load_reward` opens one. Wrong arguments raise ConfigError."""

    def __init__(self, module: GPT, run: ChattingRun, *, step: int) -> None:
        self.module = module
        """The torch module, without gradients: `module(tokens)` (b, t) gives values (b, t, 1)."""
        self.config: ModelConfig = module.config
        """Sizes and switches of the model."""
        self.step = step
        """The step of the checkpoint."""
        self._run = run

    def score(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> list[float]:
        """Return the reward of each conversation, a list of messages with `role` and `content`.

        The last message is the assistant's. ConfigError: a conversation has other roles, or is longer than n_ctx.
        """
        sequences = self._encode(conversations)
        if not sequences:
            return []
        row_tokens = row_tokens_for([len(ids) for ids in sequences], multiple=1)
        rows = max(1, _BATCH_TOKENS // row_tokens)
        scorer = _LocalScorer(self.module)
        return [float(r) for r in score_sequences(scorer, sequences, row_tokens=row_tokens, rows_at_once=rows)]

    def _encode(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> list[Ints]:
        sequences = []
        with chat_encoder(self._run) as encoder:
            for number, messages in enumerate(conversations):
                try:
                    *prompt, answer = turns_of([dict(message) for message in messages], "messages")
                    if answer.role != "assistant":
                        raise UnusableRecord("no_answer", "the last message is not the assistant's")
                    check_turns(prompt)
                    chat = encoder.encode((*prompt, answer), last_only=True)
                except (UnusableRecord, ValueError) as error:
                    raise ConfigError(f"conversation {number} is invalid: {error}") from None
                sequences.append(np.array(chat.ids[: chat.answers[-1][1]], dtype=np.int64))
                if len(sequences[-1]) > self.config.n_ctx:
                    raise ConfigError(
                        f"conversation {number} has {len(sequences[-1])} tokens: must be at most n_ctx = "
                        f"{self.config.n_ctx}. Shorten it"
                    )
        return sequences


@dataclass(frozen=True)
class _RunFiles:
    run_directory: Path
    data_config: DataConfig
    tokenizer_file: Path


@dataclass(frozen=True)
class _LocalScorer:
    """The model as gpt.post_training.sequence_scores.TokenScorer asks for it."""

    module: GPT
    data_rank: int = 0
    data_size: int = 1

    @torch.inference_mode()
    def token_values(self, batch: Batch) -> Tensor:
        device = next(self.module.parameters()).device
        batch = batch.to(device)
        mask = document_mask(batch.segment_ids)
        if mask is not None:
            mask = mask.for_device(rows=len(batch), length=batch.inputs.size(1), device=device)
        values: Tensor = self.module(batch.inputs, positions=batch.positions, mask=mask)
        return values[..., 0].float()

    def all_gather_objects(self, values: list[Any]) -> list[list[Any]]:
        return [values]


def load_reward(
    run: str | Path, *, step: int | None = None, device: str = "auto", dtype: str = "float32"
) -> TrainedReward:
    """Open the reward model of a run directory, or of one checkpoint in it. Arguments as for `load`.

    ConfigError: as for `load`, and if the run's model predicts tokens.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype = {dtype!r} is invalid: must be one of {', '.join(DTYPES)}")
    directory, checkpoint, _ = find_checkpoint(Path(run), step)
    config = checkpoint.state.get("config")
    if not isinstance(config, dict):
        raise ConfigError(
            f"{checkpoint.path}: its state contains no configuration, so `triaxial train` did not save it"
        )
    reward_objective(config, Path(run))
    model_config = model_section(config)
    with torch.device("meta"):
        module = GPT(model_config, head=ScalarHead(model_config))
    module.to(DTYPES[dtype]).to_empty(device=device_of(device))
    parameters = {f"model.{name}": parameter for name, parameter in module.named_parameters()}
    with torch.no_grad():
        for name, tensor in read_merged(with_bases(checkpoint), parameters):
            parameters[name].copy_(tensor)
    data_config = section(DataConfig, config, "data")
    files = _RunFiles(directory, data_config, tokenizer_file(directory, data_config))
    return TrainedReward(module.eval().requires_grad_(False), files, step=checkpoint.step)
