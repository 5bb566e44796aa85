"""Log-probabilities that a model gives to the ends of token sequences, batched by length; never samples."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from gpt.generation import Model, as_model
from gpt.model import GPT


@dataclass(frozen=True)
class Request:
    """Score the last `n_scored` tokens of a sequence, each given all before it; one at least comes first."""

    tokens: list[int]
    n_scored: int

    def __post_init__(self) -> None:
        assert 0 <= self.n_scored < max(1, len(self.tokens)), f"{self.n_scored} scored of {len(self.tokens)} tokens"


@dataclass(frozen=True)
class Score:
    """Log-probability in nats of each scored token, and whether each was the likeliest one."""

    log_probs: list[float]
    greedy: list[bool]


def score(
    model: GPT | Model,
    requests: Sequence[Request],
    *,
    batch_tokens: int,
    progress: Callable[[int], None] | None = None,
) -> list[Score]:
    """Scores in the order of the requests; over a layout every rank calls it alike and has them all.

    A batch holds up to `batch_tokens` positions, padding included. Sequences may be up to n_ctx + 1 tokens long, since
    the last one is only predicted. `progress` is called with the number of requests that a batch finished.
    """
    results: dict[int, Score] = {i: Score([], []) for i, request in enumerate(requests) if not request.n_scored}
    if results and progress is not None:
        progress(len(results))
    asked_model = as_model(model)
    asked = [i for i in range(len(requests)) if i not in results]
    for batch in batches_by_length([len(requests[i].tokens) for i in asked], batch_tokens=batch_tokens):
        numbers = [asked[place] for place in batch]
        scores = _score_batch(asked_model, [requests[i] for i in numbers])
        results.update(zip(numbers, scores, strict=True))
        if progress is not None:
            progress(len(numbers))
    return [results[i] for i in range(len(requests))]


def batches_by_length(lengths: Sequence[int], *, batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of sequences, longest first (so that a batch too large for memory fails at once), in batches of up to
    `batch_tokens` tokens when padded to the longest; a longer sequence is a batch of its own."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        size = max(1, batch_tokens // max(1, lengths[order[0]]))
        yield order[:size]
        order = order[size:]


@torch.inference_mode()
def _score_batch(model: Model, requests: list[Request]) -> list[Score]:
    width = max(len(request.tokens) for request in requests) - 1
    rows = [request.tokens[:-1] for request in requests]
    # Padding on the right changes nothing: causal attention never looks there.
    inputs = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)  # (b, t)
    places = [
        i * width + place for i, row in enumerate(rows) for place in range(len(row) - requests[i].n_scored, len(row))
    ]
    targets = [token for request in requests for token in request.tokens[-request.n_scored :]]
    log_probs, greedy = model.log_probs(
        inputs,
        earlier=0,
        positions=torch.arange(width, device=model.device).unsqueeze(0),
        mask=None,
        cache=None,
        places=torch.tensor(places, dtype=torch.int64, device=model.device),
        targets=torch.tensor(targets, dtype=torch.int64, device=model.device),
    )
    results, start = [], 0
    for request in requests:
        stop = start + request.n_scored
        results.append(Score(log_probs[start:stop].tolist(), greedy[start:stop].tolist()))
        start = stop
    return results
