"""The [labels] section of a recipe: labelled texts for a classifier."""

from dataclasses import dataclass, field

from gpt.errors import ConfigError
from gpt.token_files.label_states import MAX_CATEGORIES, VoteRule


@dataclass(frozen=True)
class LabelsConfig:
    """The [labels] section of a recipe. With it, the input's records are texts with labels."""

    taxonomy: str
    """TOML file of the categories, or the name of a shipped one, such as `moderation_openai`."""
    max_tokens: int | None = None
    """Tokens of a text with its end-of-document token. Longer ones are cut, and counted. Set it to data.seq_len of the
    run, because a classifier reads the last token."""
    merge: VoteRule = "majority"
    """The label of a text that is in several lines of a file: that of the `majority`, positive if `any` line is, or
    unknown unless they are `unanimous`. Ties are unknown."""
    keep_unlabelled: bool = False
    """Keep texts without any known label. Only domain adversarial training learns from them, as its target domain."""
    categories: dict[str, str] = field(default_factory=dict)
    """The categories in their order with the parent of each, "" without one. `triaxial prepare` takes them from
    `taxonomy`."""
    version: str = ""
    """Name and version of the taxonomy, such as "openai 1". `triaxial prepare` takes it from `taxonomy`."""
    severities: dict[str, int] = field(default_factory=dict)
    """The severities of the categories that have one. `triaxial prepare` takes them from `taxonomy`."""
    digest: str = ""
    """Digest of the taxonomy. `triaxial prepare` takes it from `taxonomy`."""

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 2:
            raise ConfigError(
                f"labels.max_tokens = {self.max_tokens} is invalid: must be at least 2, for a token of text and the "
                "end-of-document token"
            )
        if not 1 <= len(self.categories) <= MAX_CATEGORIES:
            raise ConfigError(
                f"labels.categories is invalid: it has {len(self.categories)} categories, and must have 1 to "
                f"{MAX_CATEGORIES}. `triaxial prepare` takes them from labels.taxonomy"
            )
        for name, parent in self.categories.items():
            if parent and (parent not in self.categories or parent == name):
                raise ConfigError(f"labels.categories: the parent '{parent}' of '{name}' is invalid: no other category")

    @property
    def parents(self) -> tuple[int, ...]:
        """The position of each category's parent, -1 without one."""
        names = list(self.categories)
        return tuple(names.index(parent) if parent else -1 for parent in self.categories.values())
