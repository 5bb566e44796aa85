"""The objectives that a recipe can name in `[objective] kind`, and the program that trains each.

A new objective adds its room and a line here.
"""

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any

from gpt.moderation.config import ClassifierConfig
from gpt.post_training.config import DPOConfig, RewardConfig, SFTConfig
from gpt.post_training.ppo.config import GRPOConfig, PPOConfig
from gpt.training.config import NextTokenConfig, ObjectiveConfig

OBJECTIVES: Mapping[str, type[ObjectiveConfig]] = MappingProxyType(
    {
        "classifier": ClassifierConfig,
        "dpo": DPOConfig,
        "grpo": GRPOConfig,
        "next_token": NextTokenConfig,
        "ppo": PPOConfig,
        "reward": RewardConfig,
        "sft": SFTConfig,
    }
)
DEFAULT = "next_token"

# A program is a module with `prepare`, `train_joined` and `dry_run_notes`, see launch/training/train_rank.py. It is
# imported when used.
TRAINING_LOOP = "launch.training.train_rank"
PROGRAMS: Mapping[str, str] = MappingProxyType(  # of the kinds that alternate phases
    dict.fromkeys(("grpo", "ppo"), "launch.post_training.train_ppo")
)


def program_of(objective: ObjectiveConfig) -> Any:
    """The module of the program that trains this objective."""
    return import_module(PROGRAMS.get(objective.kind, TRAINING_LOOP))
