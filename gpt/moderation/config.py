"""The [objective] section of a moderation classifier. Imports no torch."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from gpt.errors import ConfigError, did_you_mean
from gpt.files.json_text import decode_json
from gpt.moderation.taxonomy import Taxonomy, parse_taxonomy, read_taxonomy

if TYPE_CHECKING:
    from gpt.moderation.pooling import Pooling
    from gpt.training.objective import Objective

DEFAULT_QUERIES = 8


@dataclass(frozen=True)
class ClassifierConfig:
    """The [objective] section of a classifier of texts (arXiv 2208.03274)."""

    kind: Literal["classifier"] = "classifier"
    """Learn the categories of a taxonomy from labelled texts: corpora with the stream `labels`, sampled by document or
    packed."""
    taxonomy: str = "moderation_openai"
    """The file of the taxonomy, or the name of a shipped one."""
    taxonomy_content: str = ""
    """The taxonomy itself, as JSON. A run writes it into its configuration, so that it needs no other file. Leave it
    out of recipes."""
    head: Literal["mlp", "shared_mlp", "linear"] = "mlp"
    """`mlp`: one for each category, as in the paper. `shared_mlp`: one hidden layer for all. `linear`: no hidden
    layer."""
    hidden: int = 256
    """Width of the hidden layer of an MLP."""
    head_dropout: float = 0.1
    """Share of the elements of the hidden layer (of the text's representation, if the head is linear) that training
    sets to 0."""
    pool: Literal["last", "mean", "attention"] = "last"
    """`last`: the logits of a text are those of its last token. `mean`: the mean of those of all its tokens.
    `attention`: the sum of several means, each weighted by a softmax over the text, whose weights are learnt."""
    queries: int | None = None
    """How many weighted means `pool = "attention"` has. All categories share their weights. Default: 8."""
    attention: Literal["causal", "full"] = "causal"
    """`full`: each token of a text attends to all its tokens. The trunk must learn it."""
    parents: bool = True
    """Give a category at least the probability of each of its children."""
    class_weights: dict[str, float] = field(default_factory=dict)
    """Factors of the loss of positive labels, by category: { SH = 4.0 }. 1 by default."""
    focal_gamma: float = 0.0
    """Focal loss (arXiv 1708.02002): each loss is multiplied by (1 - probability of the label) to this power."""
    adversarial_weight: float = 0.0
    """Weight of domain adversarial training (WDAT). Texts without any known label are then the target domain. The
    paper: 0.01. 0 turns it off."""
    critic_hidden: int = 300
    """Width of the two hidden layers of WDAT's critic."""
    critic_clip: float = 0.01
    """Largest size of the critic's weights."""
    restarts_positions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.taxonomy_content:
            try:
                found = read_taxonomy(Path(self.taxonomy))
            except ConfigError as error:
                raise ConfigError(f"objective.taxonomy = '{self.taxonomy}' is invalid: {error}") from None
            object.__setattr__(self, "taxonomy_content", json.dumps(found.values(), sort_keys=True))
        taxonomy = self.read
        self._check_numbers()
        for category, weight in self.class_weights.items():
            if category not in taxonomy.ids:
                meant = did_you_mean(category, taxonomy.ids) or f"categories: {', '.join(taxonomy.ids)}"
                raise ConfigError(
                    f"objective.class_weights.{category} is invalid: taxonomy '{taxonomy.label}' has no such "
                    f"category; {meant}"
                )
            if not 0 < weight < float("inf"):
                raise ConfigError(
                    f"objective.class_weights.{category} = {weight:g} is invalid: must be a number above 0. Use 1"
                )

    def _check_numbers(self) -> None:
        if self.queries is not None and self.queries < 1:
            raise ConfigError(f"objective.queries = {self.queries} is invalid: must be at least 1. Use 8")
        if self.queries is not None and self.pool != "attention":
            raise ConfigError(
                f"objective.queries = {self.queries} is invalid with objective.pool = '{self.pool}': only attention "
                "has queries. Leave it out, or set objective.pool = 'attention'"
            )
        for key in ("hidden", "critic_hidden"):
            if getattr(self, key) < 1:
                raise ConfigError(f"objective.{key} = {getattr(self, key)} is invalid: must be at least 1")
        if not 0 <= self.head_dropout < 1:
            raise ConfigError(
                f"objective.head_dropout = {self.head_dropout:g} is invalid: must be at least 0 and below 1. Use 0.1"
            )
        for key in ("focal_gamma", "adversarial_weight"):
            if not 0 <= getattr(self, key) < float("inf"):
                raise ConfigError(f"objective.{key} = {getattr(self, key):g} is invalid: must be 0 or above. Use 0")
        if not 0 < self.critic_clip < float("inf"):
            raise ConfigError(
                f"objective.critic_clip = {self.critic_clip:g} is invalid: must be a number above 0. Use 0.01"
            )

    @cached_property
    def read(self) -> Taxonomy:
        """The taxonomy."""
        try:
            values = decode_json(self.taxonomy_content)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise ConfigError(
                "objective.taxonomy_content is invalid: must be a JSON object. Leave it out, and name "
                "objective.taxonomy"
            )
        return parse_taxonomy(values, where="objective.taxonomy_content")

    @property
    def n_queries(self) -> int:
        """Of attention pooling; 0 with another pool."""
        if self.pool != "attention":
            return 0
        return DEFAULT_QUERIES if self.queries is None else self.queries

    @property
    def pooling(self) -> "Pooling":
        """How the logits of tokens become those of a text."""
        from gpt.moderation.pooling import pooling_of

        return pooling_of(self.pool, n_queries=self.n_queries, n_categories=len(self.read.ids))

    def build(self, *, z_loss: float) -> "Objective":
        from gpt.moderation.classifier import Classifier

        if z_loss:
            raise ConfigError(
                f"train.z_loss = {z_loss:g} is invalid with objective.kind = 'classifier': its loss has no such term. "
                f"Use 0"
            )
        return Classifier(self)
