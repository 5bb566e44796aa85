"""The objectives that a recipe can name in `[objective] kind`, and the program that trains each.

A new objective adds its room and a line here.
"""

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any

from gpt.post_training.config import DPOConfig, RewardConfig, SFTConfig
from gpt.post_training.ppo.config import PPOConfig
from gpt.training.config import NextTokenConfig, ObjectiveConfig

OBJECTIVES: Mapping[str, type[ObjectiveConfig]] = MappingProxyType(
    {
        "dpo": DPOConfig,
        "next_token": NextTokenConfig,
        "ppo": PPOConfig,
        "reward": RewardConfig,
        "sft": SFTConfig,
    }
)
DEFAULT = "next_token"

# A program is a module with `prepare` and `train_joined`, see launch/training/train_rank.py. It is imported when used.
TRAINING_LOOP = "launch.training.train_rank"
PROGRAMS: Mapping[str, str] = MappingProxyType({"ppo": "launch.post_training.train_ppo"})  # kinds with phases


def program_of(objective: ObjectiveConfig) -> Any:
    """The module of the program that trains this objective."""
    return import_module(PROGRAMS.get(objective.kind, TRAINING_LOOP))
