"""The [data] section of a recipe: which corpora a run reads, and how it cuts them into samples."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gpt.data.skipped import check_skip
from gpt.errors import ConfigError

SamplingName = Literal["window", "document", "packed"]


@dataclass(frozen=True)
class CorpusConfig:
    """One pair of token files and its share of the samples. Sample i holds the same part of each of its streams."""

    path: str
    """Path of the token files without `.bin` or `.idx`."""
    weight: float = 1.0
    """Share of the samples: weight / sum of weights."""
    name: str = ""
    """Name in metrics. It keys the order of the data, so set it before moving files. The last part of the path by
    default."""
    streams: dict[str, str] = field(default_factory=dict)
    """Further token files by name, such as labels or a loss mask, with the same number of documents. A path is without
    `.bin` or `.idx`. All corpora need the same names, except for streams that the objective can do without."""
    sampling: SamplingName | None = None
    """How this corpus is cut into samples. `data.sampling` by default."""

    def __post_init__(self) -> None:
        for path in (self.path, *self.streams.values()):
            if not path:
                raise ConfigError("the path of a corpus is empty; give the token file's path without .bin or .idx")
            if path.endswith((".bin", ".idx")):
                raise ConfigError(f"path = '{path}': leave out the ending; it stands for both files: '{path[:-4]}'")
        if not self.name:
            object.__setattr__(self, "name", Path(self.path).name)
        check_weight(self.name, self.weight)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The [data] section of a recipe: the data that a run reads."""

    tokenizer: str
    """Path of the tokenizer's files."""
    train: tuple[CorpusConfig, ...]
    """Corpora to train on."""
    validation: tuple[CorpusConfig, ...] = ()
    """Corpora to evaluate on, each separately."""
    seq_len: int
    """Tokens of a sample."""
    sampling: SamplingName = "window"
    """`window` cuts the concatenated documents into full sequences (GPT-3, appendix B). `document` makes each document
    one sample, cut or padded to seq_len + 1 tokens. `packed` puts as many whole consecutive documents as fit into each
    sample, and keeps attention and positions inside each; longer documents are cut."""
    document_mask: bool = False
    """Keep attention inside documents: positions restart at each, and no token is predicted from another document."""
    skip: tuple[tuple[int, ...], ...] = ()
    """Positions of the data's order to leave out: [[first, stop], ...]."""

    def __post_init__(self) -> None:
        check_seq_len(self.seq_len)
        check_skip(self.skip)
        check_names([(corpus.name, corpus.path) for corpus in self.train], where="data.train")
        check_names([(corpus.name, corpus.path) for corpus in self.validation], where="data.validation")

    @property
    def has_segments(self) -> bool:
        """Whether a row of training data may hold several documents that do not attend to each other."""
        return self.document_mask or any(self.sampling_of(corpus) != "window" for corpus in self.train)

    def sampling_of(self, corpus: CorpusConfig) -> SamplingName:
        """How a corpus is cut into samples."""
        return self.sampling if corpus.sampling is None else corpus.sampling

    def check_streams(self, required: Iterable[str], *, optional: Iterable[str] = ()) -> None:
        """ConfigError if corpora lack streams of an objective.

        Every corpus must have the `required` ones, and at least one of `train` each of the `optional` ones. All corpora
        must have a stream that is in neither if one has it.
        """
        optional = set(optional)
        self._check_all_have(required, rule="the objective of [objective] reads it from every corpus")
        self._check_all_have(
            (name for corpus in (*self.train, *self.validation) for name in corpus.streams if name not in optional),
            rule="all corpora of data.train and data.validation need the same streams",
        )
        for name in sorted(optional):
            if not any(name in corpus.streams for corpus in self.train):
                raise ConfigError(
                    f"data.train: no corpus has the stream '{name}', but the objective of [objective] needs it in at "
                    f"least one. Add streams = {{ {name} = 'PATH' }} to one"
                )

    def _check_all_have(self, names: Iterable[str], *, rule: str) -> None:
        wanted = sorted(set(names))
        for key, corpora in (("data.train", self.train), ("data.validation", self.validation)):
            for corpus in corpora:
                if missing := [name for name in wanted if name not in corpus.streams]:
                    streams = ", ".join(f"{name} = 'PATH'" for name in missing)
                    raise ConfigError(
                        f"{key}: corpus '{corpus.name}' has no stream '{missing[0]}', but {rule}. "
                        f"Add streams = {{ {streams} }} to it"
                    )


def check_seq_len(seq_len: int) -> None:
    if seq_len < 1:
        raise ConfigError(f"seq_len = {seq_len} tokens is invalid: must be at least 1")


def check_weight(name: str, weight: float) -> None:
    if not 0.0 < weight < float("inf"):
        raise ConfigError(
            f"corpus '{name}': weight = {weight} is invalid: must be a finite number > 0; "
            "leave the corpus out to read nothing of it"
        )
    if not 1e-100 < weight < 1e100:  # else sums and shares leave the range of floating-point numbers
        raise ConfigError(
            f"corpus '{name}': weight = {weight} is invalid: must lie between 1e-100 and 1e100; scale all weights"
        )


def check_names(corpora: Sequence[tuple[str, str]], *, where: str) -> None:
    """ConfigError when two of the (name, path) have one name."""
    seen: dict[str, str] = {}
    for name, path in corpora:
        if name in seen:
            raise ConfigError(
                f"{where}: '{seen[name]}' and '{path}' both have the name '{name}'; "
                "give one of them another with name = '...'"
            )
        seen[name] = path
