"""The loss of a model on held-out tokens and texts, and the unigram entropy of the tokens to compare it with."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gpt.evaluation.batching.scoring import Request, score
from gpt.evaluation.text_windows import TextChunk
from gpt.inference.model import ForwardInputs, InferenceModel, as_model
from gpt.model.gpt import GPT

Tokens = NDArray[np.int64]


class ValidationLoss(NamedTuple):
    """The mean loss over `tokens` predicted tokens."""

    nats_per_token: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite if that overflows a float."""
        return math.exp(self.nats_per_token) if self.nats_per_token < 700 else math.inf


class TokenRows(NamedTuple):
    """Rows of token ids (n, t + 1), which predict all of their tokens but the first.

    `counted` (n, t): the predicted tokens whose loss counts; all if None.
    """

    tokens: Tokens
    counted: NDArray[np.bool_] | None = None

    @property
    def targets(self) -> Tokens:
        """The tokens whose loss counts (m,), row by row."""
        targets = self.tokens[:, 1:]
        return targets.ravel() if self.counted is None else targets[self.counted]

    @property
    def indices(self) -> Tokens:
        """Where they are predicted (m,): row * t + column."""
        n = self.tokens[:, 1:].size
        return np.arange(n) if self.counted is None else np.flatnonzero(self.counted)


@torch.inference_mode()
def validation_loss(model: GPT | InferenceModel, batches: Iterable[TokenRows]) -> ValidationLoss:
    """Return the loss over batches of rows.

    This is the forward pass of training, on the model's device and in its dtype; a packed model equals it to rounding.
    Every rank of a layout must pass all batches. The data ranks take turns with them, and all get the result.
    """
    inference_model = as_model(model)
    device = inference_model.device
    total, count = 0.0, 0
    for number, batch in enumerate(batches):
        if number % inference_model.data_size != inference_model.data_rank or not batch.targets.size:
            continue
        targets = torch.from_numpy(batch.targets).to(device)
        inputs = torch.from_numpy(batch.tokens[:, :-1]).to(device).contiguous()  # (n, t)
        log_probs, _ = inference_model.log_probs(
            ForwardInputs(inputs, torch.arange(inputs.size(1), device=device).unsqueeze(0)),
            indices=torch.from_numpy(batch.indices).to(device),
            targets=targets,
        )
        total -= float(log_probs.double().sum())
        count += targets.numel()
    totals = [values for of_rank in inference_model.gather([(total, count)]) for values in of_rank]
    total, count = sum(loss for loss, _ in totals), sum(n for _, n in totals)
    return ValidationLoss(total / count if count else math.nan, count)


@dataclass(frozen=True)
class TokenCounts:
    """Count how often each token id was a target, (vocab_size,)."""

    counts: NDArray[np.int64]

    @property
    def entropy_nats(self) -> float:
        """The loss of a model that always predicts these frequencies. Training must get below it."""
        seen = self.counts[self.counts > 0]
        share = seen / seen.sum()
        return float(-(share * np.log(share)).sum())


def count_targets(batches: Iterable[TokenRows], vocab_size: int) -> TokenCounts:
    """Count the targets of `validation_loss` in these batches."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for batch in batches:
        counts += np.bincount(batch.targets, minlength=vocab_size)
    return TokenCounts(counts)


@dataclass(frozen=True)
class TextLoss:
    """The total loss on a text in nats, and the size of the text. A mean over nothing is None."""

    nats: float = 0.0
    tokens: int = 0
    words: int = 0
    n_bytes: int = 0

    def __add__(self, other: "TextLoss") -> "TextLoss":
        return TextLoss(
            self.nats + other.nats, self.tokens + other.tokens, self.words + other.words, self.n_bytes + other.n_bytes
        )

    @property
    def nats_per_token(self) -> float | None:
        return self.nats / self.tokens if self.tokens else None

    @property
    def nats_per_word(self) -> float | None:
        return self.nats / self.words if self.words else None

    @property
    def nats_per_byte(self) -> float | None:
        return self.nats / self.n_bytes if self.n_bytes else None

    @property
    def bits_per_byte(self) -> float | None:
        return None if self.nats_per_byte is None else self.nats_per_byte / math.log(2)


def perplexity(nats: float | None) -> float | None:
    """Return exp(loss) for the loss of one token or word; None if there is no loss, or if a float would overflow."""
    return math.exp(nats) if nats is not None and nats < 700 else None


def text_loss(
    model: GPT | InferenceModel,
    documents: Iterable[Iterable[TextChunk]],
    *,
    first_id: int,
    window: int,
    stride: int,
    batch_tokens: int,
    scored: Callable[[int], None] = lambda tokens: None,
) -> TextLoss:
    """Return the loss over documents, each with `first_id` before it. Every token is predicted once, in one window.

    Memory does not grow with the text: windows are scored on the way, a few batches at a time. Every rank of a layout
    must pass all documents. `scored` is called with the number of tokens of each few batches.
    """
    words = n_bytes = tokens = 0
    nats = 0.0

    def tokens_of(document: Iterable[TextChunk]) -> Iterator[Sequence[int]]:
        nonlocal words, n_bytes
        for chunk in document:
            words, n_bytes = words + chunk.words, n_bytes + chunk.n_bytes
            yield chunk.tokens

    windows = (
        request
        for document in documents
        for request in sliding_windows(tokens_of(document), first_id=first_id, window=window, stride=stride)
    )
    at_once = max(64, 4 * batch_tokens // window) * as_model(model).data_size  # `score` sorts them by length
    while requests := list(itertools.islice(windows, at_once)):
        before = tokens
        # No sharing: windows have no common prefix beyond `first_id`.
        for result in score(model, requests, batch_tokens=batch_tokens, sharing=False):
            nats -= math.fsum(result.log_probs)
            tokens += len(result.log_probs)
        scored(tokens - before)
    return TextLoss(nats, tokens, words, n_bytes)


def sliding_windows(chunks: Iterable[Sequence[int]], *, first_id: int, window: int, stride: int) -> Iterator[Request]:
    """Cut a document into windows of `window` tokens, one every `stride` tokens. The first begins with `first_id`.

    Each token is scored once, with at least window - stride + 1 tokens of context (less at the start of the document).
    The end of the document does not affect the context of earlier tokens.
    """
    assert 1 <= stride <= window, f"stride {stride} of {window}"
    pending, scored = [first_id], 1  # tokens from the next window's first on; how many of them need no score
    for chunk in chunks:
        pending += chunk
        start = 0
        while len(pending) - start > window:
            yield Request(pending[start : start + window + 1], window + 1 - scored)
            start, scored = start + stride, window + 1 - stride
        del pending[:start]
    if len(pending) > scored:
        yield Request(pending, len(pending) - scored)
