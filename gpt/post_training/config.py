"""The [objective] sections of post-training. Imports no torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from gpt.errors import ConfigError

if TYPE_CHECKING:
    from gpt.training.objective import Objective

Pool = Literal["last", "mean"]


@dataclass(frozen=True)
class SFTConfig:
    """The [objective] section of supervised fine-tuning (InstructGPT, arXiv 2203.02155, section 3.5)."""

    kind: Literal["sft"] = "sft"
    """Predict the tokens of demonstrations that the stream `learned` marks with 1. A corpus without it, such as
    pre-training text, is learned everywhere."""
    predicts_tokens: ClassVar[bool] = True

    def build(self, *, z_loss: float) -> "Objective":
        from gpt.post_training.sft import SFT

        return SFT(z_loss)


@dataclass(frozen=True)
class RewardConfig:
    """The [objective] section of a reward model (InstructGPT, arXiv 2203.02155, section 3.5)."""

    kind: Literal["reward"] = "reward"
    """Learn a number for each completion from rankings: corpora with the stream `marks`, each sample whole prompts."""
    pool: Pool = "last"
    """`last`: the reward of a conversation is the head's value at its last token, as in the paper. `mean`: the mean of
    the values at all its tokens, those of the prompt included."""
    restarts_positions: ClassVar[bool] = True

    def build(self, *, z_loss: float) -> "Objective":
        from gpt.post_training.reward import Reward

        return Reward(self.pool)


@dataclass(frozen=True)
class DPOConfig:
    """The [objective] section of direct preference optimisation (DPO, arXiv 2305.18290)."""

    kind: Literal["dpo"] = "dpo"
    """Learn from rankings without a reward model: corpora with the streams `learned` and `marks`, sampled by document.
    The reference model is `run.start_from`."""
    beta: float = 0.1
    """Strength of the tie to the reference: an implicit reward is beta * log(policy / reference)."""
    restarts_positions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.beta < float("inf"):
            raise ConfigError(f"objective.beta = {self.beta:g} is invalid: must be a number above 0. Use 0.1")

    def build(self, *, z_loss: float) -> "Objective":
        from gpt.post_training.dpo import Preferences

        if z_loss:
            raise ConfigError(
                f"train.z_loss = {z_loss:g} is invalid with objective.kind = 'dpo': its loss has no such term. Use 0"
            )
        return Preferences(self.beta)
