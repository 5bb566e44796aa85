"""Define the recipe of `triaxial prepare` as one frozen object; the type of each section lives with its stage."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from data_prep.conversations.config import ConversationsConfig
from data_prep.corpus.split import SplitConfig
from data_prep.corpus.tokenize import TokenizerConfig
from data_prep.corpus.upload import url_of
from data_prep.decontamination.decontaminate import DecontaminateConfig
from data_prep.dedup.exact import ExactConfig
from data_prep.dedup.fuzzy import FuzzyConfig
from data_prep.dedup.index import DedupConfig
from data_prep.documents.quarantine import QuarantineConfig
from data_prep.extraction.page_text import ExtractConfig
from data_prep.filters.language import LanguageConfig
from data_prep.filters.moderation import ModerationConfig
from data_prep.filters.pareto import ClassifyConfig
from data_prep.filters.pii import PiiConfig
from data_prep.filters.quality import QualityConfig
from data_prep.inputs.config import InputConfig
from data_prep.labels.config import LabelsConfig
from gpt.errors import ConfigError


@dataclass(frozen=True)
class OutputConfig:
    """The [output] section of a recipe: where the corpus goes and how its documents are divided."""

    folder: Path
    """Folder of the token files. If it is a URL, the corpus is made in `work` and copied there."""
    work: Path | None = None
    """Local folder of the intermediate files, which make a second run quick. The subfolder "work" by default."""
    validation_fraction: float = 0.01
    """Share of the documents that goes to the validation split."""
    seed: int = 0
    """Draws the split and the order of the documents."""
    shard_tokens: int = 1_000_000_000
    """A split of more tokens is written as several pairs of files of about equal length, each a random part of it."""
    keep_intermediate: bool = True
    """False removes the documents of a stage once the next stage is done. A later run makes them again if it needs
    them."""

    def __post_init__(self) -> None:
        if self.url is not None and self.work is None:
            raise ConfigError(f"output.work is missing: output.folder = {self.url} is remote. Use a local folder")
        if self.work is not None and url_of(self.work) is not None:
            raise ConfigError(f"output.work = {url_of(self.work)} is invalid: must be a local folder")
        if not 0 < self.validation_fraction < 1:
            raise ConfigError(
                f"output.validation_fraction = {self.validation_fraction} is invalid: must be above 0 and below 1"
            )
        if self.shard_tokens < 1:
            raise ConfigError(
                f"output.shard_tokens = {self.shard_tokens} is invalid: must be at least 1. The default is 1000000000"
            )

    @property
    def url(self) -> str | None:
        """Address of the corpus if it is remote."""
        return url_of(self.folder)

    @property
    def corpus_folder(self) -> Path:
        """Folder in which the corpus is made."""
        return self.folder if self.url is None else self.work_folder / "corpus"

    @property
    def work_folder(self) -> Path:
        """Folder of the intermediate files."""
        return self.work or self.folder / "work"

    @property
    def split(self) -> SplitConfig:
        """The settings that decide a document's split and position."""
        return SplitConfig(self.validation_fraction, self.seed)


@dataclass(frozen=True)
class PrepareConfig:
    """A whole recipe."""

    input: InputConfig
    output: OutputConfig
    tokenizer: TokenizerConfig
    extract: ExtractConfig = field(default_factory=ExtractConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    classify: ClassifyConfig = field(default_factory=ClassifyConfig)
    dedup: DedupConfig = field(default_factory=DedupConfig)
    dedup_exact: ExactConfig = field(default_factory=ExactConfig)
    dedup_minhash: FuzzyConfig = field(default_factory=FuzzyConfig)
    decontaminate: DecontaminateConfig = field(default_factory=DecontaminateConfig)
    moderation: ModerationConfig = field(default_factory=ModerationConfig)
    pii: PiiConfig = field(default_factory=PiiConfig)
    quarantine: QuarantineConfig = field(default_factory=QuarantineConfig)
    conversations: ConversationsConfig | None = None
    """With this section the input's records are conversations. The steps for web text are then off: [extract],
    [language], [quality], [classify], [moderation] and [pii]."""
    labels: LabelsConfig | None = None
    """With this section the input's records are texts with labels, for a classifier. It turns off the steps that
    [conversations] turns off."""

    def __post_init__(self) -> None:
        if self.conversations is not None and self.labels is not None:
            raise ConfigError("[labels] is invalid with [conversations]: a corpus has one of them. Remove one section")
        if self.conversations is not None:
            _set_for_records(self, "conversations")
        if self.labels is not None:
            _set_for_records(self, "labels")


def _set_for_records(config: PrepareConfig, section: str) -> None:
    """Turn off the steps for web text. ConfigError: the recipe sets one of them, or lacks what the section needs."""
    off = {
        "extract": ExtractConfig(),
        "language": LanguageConfig(enabled=False),
        "quality": QualityConfig(rules=()),
        "classify": ClassifyConfig(),
        "moderation": ModerationConfig(),
        "pii": PiiConfig(),
    }
    for name, value in off.items():
        own = getattr(config, name)
        if own not in (value, type(own)()):
            raise ConfigError(f"[{name}] is invalid with [{section}]: that step is for web text. Remove [{name}]")
        object.__setattr__(config, name, value)
    if config.tokenizer.path is None:
        raise ConfigError(
            f"tokenizer.path is missing: with [{section}] the tokenizer is that of the model to train. Set it "
            "to the tokenizer of a corpus or of an imported model"
        )
    if config.input.source != "files":
        raise ConfigError(
            f"input.source = '{config.input.source}' is invalid with [{section}]: its pages hold none. Use input.paths"
        )
    endings = {".json": "json lines", **config.input.endings}  # data sets of instructions are often one JSON list
    object.__setattr__(config, "input", replace(config.input, endings=endings))
    object.__setattr__(config, "decontaminate", replace(config.decontaminate, whole_documents=True))
