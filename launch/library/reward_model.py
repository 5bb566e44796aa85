"""A trained reward model with its tokenizer, in one process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.conversations.conversation import UnusableRecord, check_turns
from data_prep.conversations.turns import turns_of
from gpt.data.config import DataConfig
from gpt.errors import ConfigError
from gpt.model.config import ModelConfig
from gpt.model.gpt import GPT
from gpt.post_training.sequence_scores import Ints, row_tokens_for, score_sequences
from launch.rewards.open_run import reward_objective
from launch.runs.chat_format import ChattingRun, chat_encoder
from launch.runs.open_engine import LocalScorer, load_local_scorer
from launch.runs.saved_run import DTYPES, device_of, find_checkpoint, model_section, section, tokenizer_file

_BATCH_TOKENS = 8192


class TrainedReward:
    """A reward model with its tokenizer, on one device. `load_reward` opens one. Wrong arguments raise ConfigError."""

    def __init__(self, scorer: LocalScorer, run: ChattingRun, *, step: int) -> None:
        self._scorer = scorer
        self.module: GPT = scorer.module
        """The torch module, without gradients: `module(tokens)` (b, t) gives values (b, t, 1)."""
        self.config: ModelConfig = self.module.config
        """Sizes and switches of the model."""
        self.step = step
        """The step of the checkpoint."""
        self._run = run

    def score(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> list[float]:
        """Return the reward of each conversation, a list of messages with `role` and `content`.

        The last message is the assistant's. ConfigError: a conversation has other roles, or is longer than n_ctx.
        """
        return self.score_tokens(self._encode(conversations))

    def score_tokens(self, sequences: Sequence[Sequence[int] | Ints]) -> list[float]:
        """Return the reward of each sequence of token ids, a prompt with its answer, as PPO computes it.

        ConfigError: a sequence is empty or longer than n_ctx.
        """
        if not sequences:
            return []
        for number, ids in enumerate(sequences):
            if not 0 < len(ids) <= self.config.n_ctx:
                raise ConfigError(
                    f"sequence {number} has {len(ids)} tokens: must be from 1 to n_ctx = {self.config.n_ctx}"
                )
        row_tokens = row_tokens_for([len(ids) for ids in sequences], multiple=1)
        rows = max(1, _BATCH_TOKENS // row_tokens)
        arrays = [np.asarray(ids, dtype=np.int64) for ids in sequences]
        return [float(r) for r in score_sequences(self._scorer, arrays, row_tokens=row_tokens, rows_at_once=rows)]

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
    objective = reward_objective(config, Path(run))
    model_config = model_section(config)
    scorer = load_local_scorer(checkpoint, model_config, objective, device=device_of(device), dtype=DTYPES[dtype])
    data_config = section(DataConfig, config, "data")
    files = _RunFiles(directory, data_config, tokenizer_file(directory, data_config))
    return TrainedReward(scorer, files, step=checkpoint.step)
