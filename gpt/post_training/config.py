"""The [objective] sections of post-training. Imports no torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from gpt.training.objective import Objective


@dataclass(frozen=True)
class SFTConfig:
    """The [objective] section of supervised fine-tuning (InstructGPT, arXiv 2203.02155, section 3.5)."""

    kind: Literal["sft"] = "sft"
    """Predict the tokens of demonstrations that the stream `learned` marks with 1. A corpus without it, such as
    pre-training text, is learned everywhere."""

    def build(self, *, z_loss: float) -> "Objective":
        from gpt.post_training.sft import SFT

        return SFT(z_loss)


@dataclass(frozen=True)
class RewardConfig:
    """The [objective] section of a reward model (InstructGPT, arXiv 2203.02155, section 3.5)."""

    kind: Literal["reward"] = "reward"
    """Learn a number for each completion from rankings: corpora with the stream `marks`, each sample whole prompts."""
    restarts_positions: ClassVar[bool] = True

    def build(self, *, z_loss: float) -> "Objective":
        from gpt.post_training.reward import Reward

        return Reward()
