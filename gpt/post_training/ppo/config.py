"""The [objective] section of a recipe for PPO and PPO-ptx (InstructGPT, arXiv 2203.02155), and for GRPO."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gpt.data.config import CorpusConfig, check_names
from gpt.errors import ConfigError, nearest_multiples

if TYPE_CHECKING:
    from gpt.training.objective import Objective

INFINITY = float("inf")
Placement = Literal["reference", "rewards", "value", "ema"]


@dataclass(frozen=True)
class RewardSource:
    """A reward of a response: that of a run with a scalar head, or that of a Python function."""

    run: Path | None = None
    """A run of `kind = "reward"`, or one of its checkpoints. Its tokenizer must be the policy's."""
    function: str = ""
    """A Python function "module:name" that maps a list of prompts and a list of responses, as texts, to a list of
    numbers."""
    weight: float = 1.0
    """Factor in the sum of rewards."""
    name: str = ""
    """Name in metrics. By default the last part of the run's path, or the function's name."""

    def __post_init__(self) -> None:
        if (self.run is None) == (not self.function):
            raise ConfigError("objective.rewards: each needs either `run` or `function`. Give one of them")
        module, colon, name = self.function.partition(":")
        if self.function and not (colon and module and name):
            raise ConfigError(
                f"objective.rewards: function = '{self.function}' is invalid: must be 'module:name'. Use for example "
                f"'my_rewards:brevity', with my_rewards.py in the current folder"
            )
        if not -INFINITY < self.weight < INFINITY:
            raise ConfigError(f"objective.rewards: weight = {self.weight} is invalid: must be a finite number")
        if not self.name:
            object.__setattr__(self, "name", name if self.run is None else self.run.name)


@dataclass(frozen=True)
class RolloutsConfig:
    """The keys that PPO and GRPO share."""

    kind: str = ""
    rewards: tuple[RewardSource, ...] = ()
    """The rewards, which are added up with their weights."""
    gold: tuple[RewardSource, ...] = ()
    """Rewards that are measured and logged, and that the policy never learns from."""
    missing_end_reward: float | None = None
    """Reward of a response without an end token, in place of its score. By default the score counts. Below the scores
    of responses that end."""
    max_response_tokens: int = 1024
    """Tokens of a response at most, the end token included. `data.seq_len` limits prompt and response together."""
    temperature: float = 1.0
    """Temperature of the sampler, and of the probabilities that are trained. 0 samples greedily, for tests."""
    rollout_rows: int = 64
    """Sequences that a data rank writes at the same time."""
    rollout_part: int = 64
    """Episodes of a file of rollouts. A file that is complete is not sampled again after a restart."""
    keep_rollouts: int = 2
    """Newest iterations whose files of rollouts are kept. 0 keeps all."""
    minibatch_episodes: int = 64
    """Episodes of an update, over all data ranks. With groups, whole ones on each rank."""
    inner_epochs: int = 1
    """Passes over the episodes of an iteration."""
    offload: tuple[Placement, ...] = ()
    """Models whose weights wait in host memory while others work: reference, rewards, value (PPO), ema. On GPUs."""


@dataclass(frozen=True)
class PPOConfig(RolloutsConfig):
    """The [objective] section for PPO. An iteration is a step of the run: `batch.global_batch_tokens` / `data.seq_len`
    episodes are sampled, scored and learned from. `data.train` holds prompts, `run.start_from` names the policy's first
    weights, which are also the reference's. The defaults are the paper's, where it has them.
    """

    kind: Literal["ppo"] = "ppo"
    """Proximal policy optimisation with a value model; with `ptx` PPO-ptx."""
    rollouts: Literal["sample", "only", "replay"] = "sample"
    """`sample` samples and trains. `only` samples with the current weights and trains nothing. `replay` trains on the
    files of `replay_from`."""
    replay_from: Path | None = None
    """A run whose folder `rollouts` is replayed."""
    max_staleness: int = 0
    """Iterations by which the weights of replayed rollouts may be older than those that learn from them."""
    clip: float = 0.2
    """The policy's gain ends where the ratio of probabilities leaves 1 +- clip."""
    value_clip: float = 0.2
    """The value's loss ends where it moves by more than this from its old value."""
    beta: float = 0.02
    """Factor of the KL penalty w.r.t. the reference, per token."""
    target_kl: float | None = None
    """Nats a response. Beta is adapted to hold the KL there (arXiv 1909.08593). By default beta is fixed."""
    beta_horizon: int = 10_000
    """Episodes over which beta adapts."""
    discount: float = 1.0
    """Discount of rewards per token. The paper has none."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation (arXiv 1506.02438). The paper does not state its own."""
    whiten_advantages: bool = True
    """Give the advantages of an iteration mean 0 and variance 1 over all tokens of responses."""
    value_from: Path | None = None
    """The run whose weights the value model starts from. By default the first reward that is a run, else
    `run.start_from` with a new head. The value model of a reward model with `pool = "mean"` takes the same mean."""
    value_learning_rate: float = 9e-6
    """Peak learning rate of the value model, which follows the same schedule."""
    critic_warmup_iterations: int = 0
    """First iterations in which only the value model learns."""
    ema: float = 0.992
    """Decay of the moving average of the policy's weights, once an iteration, in RUN/ema. 0 keeps none."""
    ptx: tuple[CorpusConfig, ...] = ()
    """Pre-training corpora, whose next-token gradient is added to that of each update (PPO-ptx)."""
    ptx_gamma: float = 27.8
    """Factor of the pre-training gradient, which is that of the mean loss per token."""
    ptx_per_episode: int = 8
    """Pre-training samples of `data.seq_len` tokens for each episode."""

    def __post_init__(self) -> None:
        check_common(self)
        check_names([(corpus.name, corpus.path) for corpus in self.ptx], where="objective.ptx")
        for key in ("value_clip", "value_learning_rate"):
            if not 0 < getattr(self, key) < INFINITY:
                raise ConfigError(f"objective.{key} = {getattr(self, key)} is invalid: must be a number above 0")
        for key in ("discount", "gae_lambda"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(f"objective.{key} = {getattr(self, key)} is invalid: must be from 0 to 1")
        if self.target_kl is not None and not 0 < self.target_kl < INFINITY:
            raise ConfigError(f"objective.target_kl = {self.target_kl} is invalid: must be a number of nats above 0")
        if not 0 <= self.ptx_gamma < INFINITY:
            raise ConfigError(f"objective.ptx_gamma = {self.ptx_gamma} is invalid: must be a number of at least 0")

    def build(self, *, z_loss: float) -> "Objective":
        from gpt.post_training.ppo.objectives import Policy
        from gpt.post_training.ppo_loss import PolicyLoss

        return Policy(PolicyLoss(clip=self.clip, temperature=self.temperature or 1.0))

    @property
    def loop(self) -> "PPOConfig":
        """The settings of the loop."""
        return self


@dataclass(frozen=True)
class GRPOConfig(RolloutsConfig):
    """The [objective] section for GRPO (arXiv 2402.03300): several responses to each prompt, and no value model.

    A response's advantage is its reward relative to those of its group. The KL penalty is part of the loss (k3). An
    iteration is a step of the run, as for `PPOConfig`.
    """

    kind: Literal["grpo"] = "grpo"
    """Group relative policy optimisation."""
    group_size: int = 8
    """Responses to each prompt."""
    scale_advantages: bool = True
    """Divide advantages by the standard deviation of the group."""
    average: Literal["response", "token"] = "response"
    """Whether each response (the paper) or each token (DAPO, arXiv 2503.14476) has equal weight in the loss."""
    clip_low: float = 0.2
    """The policy's gain ends where the ratio of probabilities falls below 1 - clip_low."""
    clip_high: float = 0.2
    """The policy's gain ends where the ratio rises above 1 + clip_high."""
    beta: float = 0.04
    """Factor of the KL penalty w.r.t. the reference in the loss."""
    ema: float = 0.0
    """Decay of the moving average of the policy's weights, once an iteration, in RUN/ema. 0 keeps none."""

    def __post_init__(self) -> None:
        check_common(self.loop)
        if self.group_size < 2:
            raise ConfigError(f"objective.group_size = {self.group_size} is invalid: must be at least 2")
        for key in ("clip_low", "clip_high"):
            if not 0 < getattr(self, key) < 1:
                raise ConfigError(f"objective.{key} = {getattr(self, key)} is invalid: must lie between 0 and 1")
        if self.minibatch_episodes % self.group_size:
            near = nearest_multiples(self.group_size, self.minibatch_episodes)
            raise ConfigError(
                f"objective.minibatch_episodes = {self.minibatch_episodes} is invalid: must be a multiple of "
                f"objective.group_size = {self.group_size}. Use {near}"
            )

    def build(self, *, z_loss: float) -> "Objective":
        from gpt.post_training.grpo_loss import GroupPolicyLoss
        from gpt.post_training.ppo.objectives import Policy

        loss = GroupPolicyLoss(
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            beta=self.beta,
            average=self.average,
            temperature=self.temperature or 1.0,
        )
        return Policy(loss)

    @property
    def loop(self) -> PPOConfig:
        """The settings of the loop. The KL penalty is in the loss, so that no reward has one."""
        shared = {field.name: getattr(self, field.name) for field in fields(RolloutsConfig) if field.name != "kind"}
        return PPOConfig(beta=0.0, whiten_advantages=False, ema=self.ema, **shared)


_AT_LEAST_1 = ("max_response_tokens", "rollout_rows", "rollout_part", "minibatch_episodes", "inner_epochs")


def check_common(config: PPOConfig) -> None:
    """ConfigError if a value breaks a rule that holds for all kinds of this module."""
    names = [reward.name for reward in (*config.rewards, *config.gold)]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"objective.rewards and objective.gold: two have the name '{name}'. Rename one with name = '...'"
            )
    at_least = dict.fromkeys((*_AT_LEAST_1, "ptx_per_episode", "beta_horizon"), 1)
    at_least |= {"keep_rollouts": 0, "max_staleness": 0, "critic_warmup_iterations": 0}
    for key, minimum in at_least.items():
        if getattr(config, key) < minimum:
            raise ConfigError(f"objective.{key} = {getattr(config, key)} is invalid: must be at least {minimum}")
    if not 0 <= config.temperature < INFINITY:
        raise ConfigError(f"objective.temperature = {config.temperature} is invalid: must be 0 or a positive number")
    if not 0 < config.clip < 1:
        raise ConfigError(f"objective.clip = {config.clip} is invalid: must lie between 0 and 1. The paper has 0.2")
    if not 0 <= config.beta < INFINITY:
        raise ConfigError(f"objective.beta = {config.beta} is invalid: must be a number of at least 0")
    if not 0 <= config.ema < 1:
        raise ConfigError(f"objective.ema = {config.ema} is invalid: must lie in [0, 1). 0 keeps no average")
    if (config.rollouts == "replay") != (config.replay_from is not None):
        raise ConfigError(
            "objective.rollouts = 'replay' and objective.replay_from belong together. Give both, or neither"
        )
