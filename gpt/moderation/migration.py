"""Turn labels of one version of a taxonomy into labels of the next."""

from collections.abc import Iterable
from dataclasses import replace

from gpt.errors import ConfigError
from gpt.moderation.labels import LabelledText
from gpt.moderation.taxonomy import Migration, Taxonomy


def check_complete(old: Taxonomy, new: Taxonomy) -> None:
    """ConfigError: the migration of `new` names categories that `old` lacks, leaves some of its categories out, or
    puts labels into one that stays."""
    migration = migration_of(new)
    if old.label != f"{new.name} {migration.from_version}":
        raise ConfigError(f"{new.label} migrates from '{new.name} {migration.from_version}', not from '{old.label}'")
    named = _old_names(migration)
    for name in named:
        if name not in old.ids:
            raise ConfigError(f"{new.label}: [migration] names '{name}', which is no category of {old.label}")
    for name in _targets(migration):
        if name in old.ids and name not in named:
            raise ConfigError(
                f"{new.label}: [migration] makes labels of '{name}', which {old.label} has too, so a text would "
                f"have two. Merge both, merged = {{{name} = ['{name}', ...]}}, or use a new id"
            )
    lost = [name for name in old.ids if name not in named and name not in new.ids]
    if lost:
        raise ConfigError(
            f"{new.label}: [migration] says nothing about {', '.join(lost)} of {old.label}. Rename, merge, split or "
            "remove them"
        )


def migration_of(taxonomy: Taxonomy) -> Migration:
    """The taxonomy's migration. ConfigError: it has none."""
    if taxonomy.migration is None:
        raise ConfigError(f"{taxonomy.label} has no [migration]. Add the table to its file, with from = VERSION")
    return taxonomy.migration


def migrated(texts: Iterable[LabelledText], taxonomy: Taxonomy) -> list[LabelledText]:
    """The texts with labels of `taxonomy` instead of those of the version before.

    Renamed labels stay. Merged ones are positive if one is, negative if all are, else unknown. The parts of a split
    label are negative if it is, else unknown. Removed labels go, added categories are unknown, and all others stay.
    A severity stays only with the category, or its new name. ConfigError: a label that is in neither version.
    """
    migration = migration_of(taxonomy)
    return [_migrate(one, migration, taxonomy) for one in texts]


def _migrate(one: LabelledText, migration: Migration, taxonomy: Taxonomy) -> LabelledText:
    named = _old_names(migration)
    for name in one.labels:
        if name not in named and name not in taxonomy.ids:
            raise ConfigError(
                f"label '{name}' of '{one.id}' is in neither {taxonomy.label} nor its [migration]. Rename, merge, "
                "split or remove it there"
            )
    labels = {migration.renamed.get(name, name): value for name, value in one.labels.items() if _stays(name, migration)}
    for new, sources in migration.merged.items():
        found = [one.labels.get(name) for name in sources]
        if any(found) or None not in found:
            labels[new] = any(found)
    for old, targets in migration.split.items():
        if one.labels.get(old) is False:
            labels |= dict.fromkeys(targets, False)
    severity = {
        migration.renamed.get(name, name): level for name, level in one.severity.items() if _stays(name, migration)
    }
    return replace(
        one,
        labels={name: labels[name] for name in taxonomy.ids if name in labels},
        severity={name: level for name, level in severity.items() if name in labels},
    )


def _stays(name: str, migration: Migration) -> bool:
    """Whether a label keeps its value, under its own or a new name."""
    return name in migration.renamed or name not in _old_names(migration)


def _targets(migration: Migration) -> list[str]:
    """The new categories whose labels come from others."""
    return [*migration.renamed.values(), *migration.merged, *(name for new in migration.split.values() for name in new)]


def _old_names(migration: Migration) -> set[str]:
    merged = {name for sources in migration.merged.values() for name in sources}
    return {*migration.renamed, *merged, *migration.split, *migration.removed}
