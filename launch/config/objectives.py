"""The objectives that a recipe can name in `[objective] kind`. A new one adds its room and a line here."""

from collections.abc import Mapping
from types import MappingProxyType

from gpt.training.config import NextTokenConfig, ObjectiveConfig

OBJECTIVES: Mapping[str, type[ObjectiveConfig]] = MappingProxyType({"next_token": NextTokenConfig})
DEFAULT = "next_token"
