"""How well a model predicts held-out tokens and texts, and how well token frequencies alone would; never trains."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
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
    """The mean over `tokens` predicted tokens."""

    nats_per_token: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """e to the loss; infinite where that is no float."""
        return math.exp(self.nats_per_token) if self.nats_per_token < 700 else math.inf


@torch.inference_mode()
def validation_loss(model: GPT | InferenceModel, batches: Iterable[Tokens]) -> ValidationLoss:
    """The loss over batches (n, seq_len + 1) of token ids: each row predicts its tokens but the first.

    The forward pass of training, on the model's device and in its dtype; to rounding, where the model is packed. Every
    rank of a layout passes all batches; data ranks take them in turns, and all have the result.
    """
    asked = as_model(model)
    total, count = 0.0, 0
    for number, batch in enumerate(batches):
        if number % asked.data_size != asked.data_rank:
            continue
        tokens = torch.from_numpy(batch).to(asked.device)  # (n, t + 1)
        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].flatten()
        log_probs, _ = asked.log_probs(
            ForwardInputs(inputs, torch.arange(inputs.size(1), device=asked.device).unsqueeze(0)),
            indices=torch.arange(inputs.numel(), device=asked.device),
            targets=targets,
        )
        total -= float(log_probs.double().sum())
        count += targets.numel()
    totals = [of_rank for theirs in asked.gather([(total, count)]) for of_rank in theirs]
    total, count = sum(loss for loss, _ in totals), sum(n for _, n in totals)
    return ValidationLoss(total / count if count else math.nan, count)


@dataclass(frozen=True)
class TokenCounts:
    """How often each token id was to be predicted, (vocab_size,)."""

    counts: NDArray[np.int64]

    @property
    def entropy_nats(self) -> float:
        """The loss of a model that predicts these very frequencies every time: what training must get below."""
        seen = self.counts[self.counts > 0]
        share = seen / seen.sum()
        return float(-(share * np.log(share)).sum())


def count_targets(batches: Iterable[Tokens], vocab_size: int) -> TokenCounts:
    """Counts of the tokens that `validation_loss` would predict in these batches."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for batch in batches:
        counts += np.bincount(batch[:, 1:].ravel(), minlength=vocab_size)
    return TokenCounts(counts)


@dataclass(frozen=True)
class TextLoss:
    """What a text costs a model in all, and how much text it is; a mean is None where there is nothing to divide by."""

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
    """e to the loss of one token or word; None where there is no loss, or the result is no float."""
    return math.exp(nats) if nats is not None and nats < 700 else None


def text_loss(
    model: GPT | InferenceModel,
    documents: Iterable[Iterable[TextChunk]],
    *,
    first_id: int,
    window: int,
    stride: int,
    batch_tokens: int,
) -> TextLoss:
    """The loss over documents, each of which begins after `first_id`; every token is predicted once, in one window.

    Memory does not grow with the text: windows are scored as they come, some batches at a time. Over a layout every
    rank passes all documents.
    """
    words = n_bytes = tokens = 0
    nats = 0.0

    def tokens_of(document: Iterable[TextChunk]) -> Iterator[Sequence[int]]:
        nonlocal words, n_bytes
        for piece in document:
            words, n_bytes = words + piece.words, n_bytes + piece.n_bytes
            yield piece.tokens

    windows = (
        one
        for document in documents
        for one in sliding_windows(tokens_of(document), first_id=first_id, window=window, stride=stride)
    )
    at_once = max(64, 4 * batch_tokens // window) * as_model(model).data_size  # `score` sorts them by length
    while some := list(itertools.islice(windows, at_once)):
        # windows that begin differently share nothing, and the first ones of documents no more than `first_id`
        for result in score(model, some, batch_tokens=batch_tokens, sharing=False):
            nats -= math.fsum(result.log_probs)
            tokens += len(result.log_probs)
    return TextLoss(nats, tokens, words, n_bytes)


def sliding_windows(pieces: Iterable[Sequence[int]], *, first_id: int, window: int, stride: int) -> Iterator[Request]:
    """Windows of so many tokens that begin every `stride` tokens of a document, the first of them with `first_id`.

    Each predicts the tokens that the one before did not, so a token has at least window - stride + 1 tokens before it,
    unless it stands nearer to the document's beginning. Where a document ends changes nothing for the tokens before.
    """
    assert 1 <= stride <= window, f"stride {stride} of {window}"
    held, known = [first_id], 1  # tokens from the next window's first on; how many of them need no prediction
    for piece in pieces:
        held += piece
        start = 0
        while len(held) - start > window:
            yield Request(held[start : start + window + 1], window + 1 - known)
            start, known = start + stride, window + 1 - stride
        del held[:start]
    if len(held) > known:
        yield Request(held, len(held) - known)
