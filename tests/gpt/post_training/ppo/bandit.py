"""For tests: PPO on prompts of one token and responses of one token, whose optimum is known.

The policy that maximises E[r] - beta * KL(pi || pi_ref) is pi_ref * exp(r / beta) / Z (arXiv 1909.08593, section 2).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gpt.data.config import CorpusConfig, DataConfig
from gpt.data.dataset import TrainingData
from gpt.data.skipped import SkippedData
from gpt.health.spikes import SpikeConfig, SpikeDetector
from gpt.model.config import ModelConfig
from gpt.post_training.ppo.config import GRPOConfig, PPOConfig, RewardSource
from gpt.post_training.ppo.episodes import Episodes
from gpt.post_training.ppo.loop import PPOLoop
from gpt.post_training.ppo.models import PPOModels, PPOSetup
from gpt.post_training.ppo.objectives import Value
from gpt.post_training.ppo.state import PPOState
from gpt.telemetry.time_ledger import TimeLedger
from gpt.token_files.files import TokenFileWriter
from gpt.training.config import CheckpointConfig, FaultConfig, TrainConfig
from gpt.training.engine import Engine
from gpt.training.optimizer import OptimizerConfig
from gpt.training.run import LoopState, Run
from gpt.training.schedule import ScheduleConfig, constant_batch
from parallel.engines.choose import build_engine
from parallel.engines.settings import EngineSettings
from parallel.layout.config import BatchConfig, ParallelConfig
from parallel.layout.layout import resolve_layout

ARMS, PROMPTS, SEQ_LEN = 8, 2, 2
MODEL = ModelConfig(vocab_size=ARMS, n_ctx=4, n_layers=1, d_model=16, n_heads=2, tied=False)
REWARDS = torch.tensor(np.random.default_rng(5).uniform(0.0, 1.0, (PROMPTS, ARMS)))  # (prompt, arm)


class Digits:
    """A tokenizer whose tokens are digits."""

    vocab_size, end_of_document_id = ARMS, 0

    def decode(self, ids: list[int]) -> str:
        return "".join(map(str, ids))


@dataclass(frozen=True)
class TableReward:
    """REWARDS, by prompt and arm."""

    per_data_rank: ClassVar[bool] = False

    def scores(self, episodes: Episodes) -> Tensor:
        return REWARDS[episodes.tokens[:, 0], episodes.tokens[:, 1]]


@dataclass
class Recorded:
    """The metrics of a run, in memory."""

    lines: list[dict[str, float]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)

    def log(self, step: int, values: Any) -> None:
        self.lines.append(dict(values))

    def message(self, text: str) -> None: ...

    def samples(self, step: int, prompts: Sequence[str], texts: Sequence[str]) -> None: ...

    def event(self, kind: Any, *, step: int, text: str, **fields: Any) -> None:
        self.events.append(text)

    def append(self, name: str, records: Any) -> None: ...

    def rewind(self, step: int) -> None: ...


def engine(objective: Any, *, micro_batch_size: int, learning_rate: float | None, offload: bool = False) -> Engine:
    """An engine on this process. Weights are drawn with a large deviation, so that the reference is not uniform."""
    parallel = ParallelConfig(precision="fp32", zero_stage=0, offload=offload)
    batch = BatchConfig(micro_batch_size=micro_batch_size, global_batch_tokens=micro_batch_size * SEQ_LEN)
    optimizer = None
    if learning_rate is not None:
        optimizer = OptimizerConfig(learning_rate=learning_rate, weight_decay=0.0)
    settings = EngineSettings(
        model=replace(MODEL, init_std=0.3),
        parallel=parallel,
        layout=resolve_layout(parallel, batch, model=MODEL, seq_len=SEQ_LEN, world_size=1),
        optimizer=optimizer,
        micro_batch_size=micro_batch_size,
        seed=1,
    )
    return build_engine(settings, objective=objective, device=torch.device("cpu"))


@dataclass(frozen=True)
class Holes:
    """A reward that fails to score every episode whose number is divisible by `every`."""

    every: int
    per_data_rank: ClassVar[bool] = False

    def scores(self, episodes: Episodes) -> Tensor:
        values = episodes.tokens[:, 1].double()
        return values.masked_fill(episodes.numbers % self.every == 0, math.nan)


@dataclass(frozen=True)
class Bandit:
    """A run, and the policy that it should end with."""

    loop: PPOLoop
    metrics: Recorded
    reference: Tensor  # (prompt, arm)

    def optimum(self, beta: float) -> Tensor:
        weights = self.reference * (REWARDS / beta).exp()
        return weights / weights.sum(1, keepdim=True)

    def policy(self) -> Tensor:
        return probabilities(self.loop.models.policy)


def probabilities(policy: Engine) -> Tensor:
    """(prompt, arm) float64."""
    from gpt.inference.generation import read_prompts

    with policy.as_model() as model:
        _, logits = read_prompts(model, [[prompt] for prompt in range(PROMPTS)], capacity=2)
    return logits.double().softmax(-1)


def make(
    folder: Path,
    kind: PPOConfig | GRPOConfig,
    *,
    iterations: int,
    episodes: int,
    learning_rate: float,
    reward: Any = None,
    offload: bool = False,
    end_ids: tuple[int, ...] = (),
) -> Bandit:
    """A run in a folder. The default process group must exist. `offload`: all models but the policy. `end_ids`: the
    arms that end a response; without any, none ends."""
    with TokenFileWriter(folder / "prompts", vocab_size=ARMS) as writer:
        for prompt in range(PROMPTS):
            writer.add_document(np.array([prompt]))
    sources = (RewardSource(function="table:reward"),)
    config = replace(kind.loop, rewards=sources, max_response_tokens=1, rollout_part=episodes, rollout_rows=episodes)
    data = DataConfig(
        tokenizer="none", train=(CorpusConfig(str(folder / "prompts")),), seq_len=SEQ_LEN, sampling="document"
    )
    size = min(config.minibatch_episodes, episodes)
    objective, group = kind.build(z_loss=0.0), kind if isinstance(kind, GRPOConfig) else None
    models = PPOModels(
        policy=engine(objective, micro_batch_size=size, learning_rate=learning_rate),
        reference=engine(objective, micro_batch_size=size, learning_rate=None, offload=offload),
        value=engine(
            Value(clip=config.value_clip),
            micro_batch_size=size,
            learning_rate=config.value_learning_rate,
            offload=offload,
        )
        if group is None
        else None,
        ema=engine(objective, micro_batch_size=size, learning_rate=None, offload=offload) if config.ema else None,
        rewards=[reward or TableReward()],
        gold=[],
    )
    setup = PPOSetup(
        config=config,
        prompts=TrainingData(data, seed=1, vocab_size=ARMS),
        ptx=None,
        tokenizer=Digits(),  # type: ignore[arg-type]
        end_ids=end_ids,
        rollouts=folder / "rollouts",
        episodes=episodes,
        seq_len=SEQ_LEN,
        seed=1,
        writes=True,
        sampled_by="bandit",
        group=group,
    )
    tokens = iterations * episodes * SEQ_LEN
    run = Run(
        config=TrainConfig(total_tokens=tokens),
        checkpoint=CheckpointConfig(every_s=0.0),
        faults=FaultConfig(),
        spike=SpikeConfig(),
        model=MODEL,
        schedule=ScheduleConfig(warmup_tokens=0, decay_tokens=tokens, final_fraction=0.02),
        peak_learning_rate=learning_rate,
        seq_len=SEQ_LEN,
        batch=constant_batch(episodes * SEQ_LEN),
        micro_batch_size=size,
        peak_flops_per_s=0.0,
        log_every_steps=1,
        replica_check_every_steps=0,
        directory=folder,
        local_checkpoints=None,
        saved_state={},
    )
    state = PPOState(LoopState(0, SkippedData.stated(()), SpikeDetector(SpikeConfig())), config.beta, models={})
    metrics = Recorded()
    loop = PPOLoop(run, setup, models, state=state, metrics=metrics, ledger=TimeLedger(None))
    return Bandit(loop, metrics, probabilities(models.reference))
