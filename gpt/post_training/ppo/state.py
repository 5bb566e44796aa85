"""The state of a PPO run between two iterations. All of it goes into each checkpoint, equal on every rank."""

from dataclasses import dataclass, field

from gpt.post_training.config import Pool
from gpt.post_training.kl import adapted_beta
from gpt.post_training.ppo.config import PPOConfig
from gpt.training.run import LoopState


@dataclass
class PPOState:
    """`loop`: the part that every run has; its step counts iterations. `models`: the checkpoints that the frozen models
    and the value model started from, by name, so that a resumed run finds the same ones; `digests` recognise them.
    `value_pool`: how the head of the value model is read, see RewardConfig."""

    loop: LoopState
    beta: float
    models: dict[str, str]
    digests: dict[str, str] = field(default_factory=dict)
    nan_rewards: int = 0  # episodes that no reward could score, of the whole run
    value_pool: Pool = "last"

    @property
    def step(self) -> int:
        """Iterations done."""
        return self.loop.step

    def to_loop(self) -> LoopState:
        """The loop's state with all of this in it, for a checkpoint."""
        self.loop.phases = {
            "beta": self.beta,
            "models": self.models,
            "digests": self.digests,
            "nan_rewards": self.nan_rewards,
            "value_pool": self.value_pool,
        }
        return self.loop

    @classmethod
    def from_loop(cls, loop: LoopState) -> "PPOState":
        """Restore the result of `to_loop`."""
        own = loop.phases
        return cls(
            loop,
            float(own["beta"]),
            models=dict(own["models"]),
            digests=dict(own.get("digests", {})),
            nan_rewards=int(own["nan_rewards"]),
            value_pool=own.get("value_pool", "last"),
        )

    def adapt_beta(self, config: PPOConfig, *, kl: float, episodes: int) -> None:
        """Move beta so that the KL in nats a response approaches `target_kl` (arXiv 1909.08593, section 2.2)."""
        if config.target_kl is not None:
            self.beta = adapted_beta(
                self.beta, kl, target=config.target_kl, horizon=config.beta_horizon, episodes=episodes
            )
