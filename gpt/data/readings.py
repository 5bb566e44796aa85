"""Find every position of a run that reads a document: the reverse of TrainingData.locate."""

from collections.abc import Callable

from gpt.data.dataset import TrainingData
from gpt.data.sampling import CorpusFiles
from gpt.data.sampling_rules import Span


def positions_reading(data: TrainingData, corpus: str, document: int, *, n_positions: int) -> list[int]:
    """The positions below `n_positions`, rising, that read a token of a document of the corpus named `corpus`.

    Its time grows with the samples of the document and with the epochs, not with the corpus. DamagedTokens: the index
    is damaged.
    """
    number = next(k for k, found in enumerate(data.corpora) if found.name == corpus)
    samples = samples_of(data.files[number], document)
    return sorted(
        position for sample in samples for position in data.order.positions_of(number, sample, n_positions=n_positions)
    )


def samples_of(files: CorpusFiles, document: int) -> range:
    """The samples of a corpus that hold a token of a document. It relies on spans that rise with the sample."""
    start, stop = files.tokens.document_start(document), files.tokens.document_start(document + 1)
    if start == stop:
        return range(0)
    first = _first_sample(files, lambda span: span[1] > start)
    return range(first, max(first, _first_sample(files, lambda span: span[0] >= stop)))


def _first_sample(files: CorpusFiles, holds: Callable[[Span], bool]) -> int:
    """The first sample whose span fulfils a condition that all later samples fulfil too; n_samples if none does."""
    low, high = 0, files.n_samples
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(files.span(middle)) else (middle + 1, high)
    return low
