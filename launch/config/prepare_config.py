"""Read the recipe of `triaxial prepare`. The categories of a section [labels] come from its taxonomy."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt.errors import ConfigError
from gpt.moderation.taxonomy import read_taxonomy
from launch.config.recipe import build

if TYPE_CHECKING:
    from data_prep.filters.moderation import ModerationStage
    from data_prep.recipe import PrepareConfig


def prepare_config(table: dict[str, Any]) -> "PrepareConfig":
    """The recipe of a TOML table with its overrides. ConfigError: a key, or the taxonomy, is invalid."""
    from data_prep.recipe import PrepareConfig  # loads the packages of the extra `data`

    return build(PrepareConfig, with_taxonomy(table), where="")


def moderation_of(config: "PrepareConfig") -> "ModerationStage | None":
    """The stage of [moderation], which data_prep cannot make itself; None if the recipe has none.

    ConfigError: there is no such classifier run, or it lacks a category.
    """
    if config.moderation.run is None:
        return None
    from launch.moderation.filter_stage import moderation_stage  # loads torch

    return moderation_stage(config.moderation)


def with_taxonomy(table: dict[str, Any]) -> dict[str, Any]:
    """The table with the categories of labels.taxonomy, as data_prep takes them: it reads no taxonomy itself.

    ConfigError: the taxonomy breaks a rule, or the recipe names other categories.
    """
    labels = table.get("labels")
    if not isinstance(labels, dict) or not isinstance(labels.get("taxonomy"), str):
        return table
    try:
        taxonomy = read_taxonomy(Path(labels["taxonomy"]))
    except ConfigError as error:
        raise ConfigError(f"labels.taxonomy = '{labels['taxonomy']}' is invalid: {error}") from None
    found: dict[str, Any] = {
        "categories": {one.id: one.parent or "" for one in taxonomy.categories},
        "version": taxonomy.label,
        "severities": {one.id: one.severity for one in taxonomy.categories if one.severity is not None},
        "digest": taxonomy.digest,
    }
    for key, value in found.items():
        if labels.get(key, value) != value:
            raise ConfigError(
                f"labels.{key} is invalid: it is not that of labels.taxonomy = '{labels['taxonomy']}'. Remove it"
            )
    return {**table, "labels": {**labels, **found}}
