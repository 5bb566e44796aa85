"""Rules that cut a token file into samples: by window, by document, or documents packed whole. Needs no torch."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpt.data.config import CorpusConfig, DataConfig
from gpt.errors import ConfigError
from gpt.token_files.files import TokenFile

Span = tuple[int, int]  # first token, and one past the last, as positions in a file
_CHUNK = 1 << 20  # documents: limits the memory of packing


class SamplingRule(Protocol):
    """A rule that numbers the samples of a token file. The data order knows samples by number only."""

    @property
    def seq_len(self) -> int: ...

    @property
    def one_span(self) -> bool:
        """Whether one span fits all streams of a corpus, whose documents then need the same lengths."""
        ...

    @property
    def may_be_short(self) -> bool:
        """Whether a sample may have fewer than seq_len + 1 tokens. Its documents are then kept apart."""
        ...

    def of(self, file: TokenFile) -> "SamplingRule":
        """The rule with all that it must know of a file. Only a rule from here counts and cuts."""
        ...

    def count(self, file: TokenFile) -> int:
        """The samples of a file."""
        ...

    def span(self, file: TokenFile, sample: int) -> Span:
        """The tokens of a sample, at most seq_len + 1."""
        ...


@dataclass(frozen=True)
class Windows:
    """Sample i is window i of the token stream: seq_len + 1 tokens, of which neighbours share one.

    Windows do not stop at the ends of documents (GPT-3, appendix B: full sequences, documents packed).
    """

    seq_len: int
    one_span: bool = field(default=True, init=False)
    may_be_short: bool = field(default=False, init=False)

    def of(self, file: TokenFile) -> "Windows":
        return self

    def count(self, file: TokenFile) -> int:
        return self.count_in(file.n_tokens)

    def count_in(self, n_tokens: int) -> int:
        """Whole windows. The last n_tokens - 1 - count * seq_len tokens are in none."""
        return max(0, (n_tokens - 1) // self.seq_len)

    def span(self, file: TokenFile, sample: int) -> Span:
        start = sample * self.seq_len
        return start, start + self.seq_len + 1


@dataclass(frozen=True)
class Documents:
    """Sample i is document i, cut after seq_len + 1 tokens."""

    seq_len: int
    one_span: bool = field(default=False, init=False)
    may_be_short: bool = field(default=True, init=False)

    def of(self, file: TokenFile) -> "Documents":
        return self

    def count(self, file: TokenFile) -> int:
        return file.n_documents

    def span(self, file: TokenFile, sample: int) -> Span:
        start = file.document_start(sample)
        return start, min(start + self.seq_len + 1, file.document_start(sample + 1))


@dataclass(frozen=True)
class PackedDocuments:
    """A sample is as many whole consecutive documents as fit into seq_len tokens (next-fit), so that a model can read
    the last token of each. A longer document is a sample of its own, cut after seq_len + 1 tokens.

    Memory: 8 bytes a sample.
    """

    seq_len: int
    firsts: NDArray[Any] | None = field(default=None, compare=False)  # first token of each sample, and the file's end
    n_cut: int = field(default=0, compare=False)  # documents that are cut
    one_span: bool = field(default=True, init=False)
    may_be_short: bool = field(default=True, init=False)

    def of(self, file: TokenFile) -> "PackedDocuments":
        """Pack a file. Reads its whole index: some seconds for 100 million documents."""
        starts = file.document_starts()
        firsts = next_fit(starts, self.seq_len)
        return PackedDocuments(self.seq_len, firsts, int((np.diff(starts) > self.seq_len + 1).sum()))

    def count(self, file: TokenFile) -> int:
        return len(self._firsts) - 1

    def span(self, file: TokenFile, sample: int) -> Span:
        start, following = int(self._firsts[sample]), int(self._firsts[sample + 1])
        return start, min(start + self.seq_len + 1, following)

    @property
    def _firsts(self) -> NDArray[Any]:
        assert self.firsts is not None, "pack a file with `of` first"
        return self.firsts


def next_fit(starts: NDArray[np.int64], room: int) -> NDArray[np.int64]:
    """The first token of each sample of at most `room` tokens, and the file's end: (samples + 1,).

    `starts` (documents + 1,): the first token of each document, and the file's end. Samples hold whole documents; one
    that is longer than `room` is alone. Empty documents make no sample.
    """
    n_documents, end = len(starts) - 1, int(starts[-1])
    firsts: list[int] = []
    document = 0
    for chunk in range(0, n_documents, _CHUNK):
        stop = min(n_documents, chunk + _CHUNK)
        fits = np.searchsorted(starts, starts[chunk:stop] + room, side="right") - 1
        following = np.maximum(fits, np.arange(chunk, stop) + 1).tolist()  # at least one document
        while document < stop:
            firsts.append(document)
            document = following[document - chunk]
    tokens = np.unique(starts[np.array(firsts, dtype=np.int64)])
    return np.append(tokens[tokens < end], end)


def sampling_of(config: DataConfig, corpus: CorpusConfig) -> SamplingRule:
    """The rule of a corpus: its own `sampling`, or `data.sampling`."""
    rules: dict[str, Callable[[int], SamplingRule]] = {
        "window": Windows,
        "document": Documents,
        "packed": PackedDocuments,
    }
    return rules[config.sampling_of(corpus)](config.seq_len)


def count_samples(sampling: SamplingRule, file: TokenFile) -> int:
    """The samples of a file. ConfigError if there is none."""
    n_samples = sampling.count(file)
    if n_samples == 0 and sampling.may_be_short:
        raise ConfigError(
            f"{file.prefix}.bin has no documents with tokens, but data.sampling = 'document' and 'packed' make samples "
            f"of them; add documents to the corpus, leave it out, or use data.sampling = 'window'"
        )
    if n_samples == 0:
        raise too_few_tokens(f"{file.prefix}.bin", n_tokens=file.n_tokens, seq_len=sampling.seq_len)
    return n_samples


def too_few_tokens(called: str, *, n_tokens: int, seq_len: int) -> ConfigError:
    """The error for a corpus without a whole window."""
    return ConfigError(
        f"{called} has {n_tokens:,} tokens, but one sample of seq_len = {seq_len:,} needs {seq_len + 1:,}; add "
        f"documents to the corpus, leave it out, or lower seq_len"
    )
