"""Log-probabilities that a model gives to the ends of token sequences, batched by length; never samples."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt.loss import chunk_tokens
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
    model: GPT,
    requests: Sequence[Request],
    *,
    batch_tokens: int,
    progress: Callable[[int], None] | None = None,
) -> list[Score]:
    """Scores in the order of the requests. A batch holds up to `batch_tokens` positions, padding included.

    Sequences may be up to n_ctx + 1 tokens long, since the last one is only predicted. `progress` is called with the
    number of requests that a batch finished.
    """
    results: dict[int, Score] = {i: Score([], []) for i, request in enumerate(requests) if not request.n_scored}
    if results and progress is not None:
        progress(len(results))
    asked = [i for i in range(len(requests)) if i not in results]
    for batch in batches_by_length([len(requests[i].tokens) for i in asked], batch_tokens=batch_tokens):
        numbers = [asked[place] for place in batch]
        scores = _score_batch(model, [requests[i] for i in numbers])
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
def _score_batch(model: GPT, requests: list[Request]) -> list[Score]:
    head = model.head
    assert head is not None
    device = head.weight.device
    width = max(len(request.tokens) for request in requests) - 1
    rows = [request.tokens[:-1] for request in requests]
    # Padding on the right changes nothing: causal attention never looks there.
    inputs = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)  # (b, t)
    hidden = model.hidden_states(inputs)  # (b, t, d)
    ends = [len(row) for row in rows]
    places = torch.tensor(
        [i * width + place for i, end in enumerate(ends) for place in range(end - requests[i].n_scored, end)],
        dtype=torch.int64,
        device=device,
    )
    targets = torch.tensor(
        [token for request in requests for token in request.tokens[len(request.tokens) - request.n_scored :]],
        dtype=torch.int64,
        device=device,
    )
    scored = hidden.reshape(-1, hidden.size(-1))[places]  # (n, d): the head runs on these alone
    log_probs, greedy = _against_vocabulary(scored, head.weight[: model.vocab_size], targets)
    results, start = [], 0
    for request in requests:
        stop = start + request.n_scored
        results.append(Score(log_probs[start:stop], greedy[start:stop]))
        start = stop
    return results


def _against_vocabulary(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[list[float], list[bool]]:
    """Log-probability of each target (n,) and whether it is the likeliest, from hidden states (n, d)."""
    log_probs: list[float] = []
    greedy: list[bool] = []
    step = chunk_tokens(weight.size(0), weight.device)
    for i in range(0, targets.numel(), step):
        logits = (hidden[i : i + step] @ weight.T).float()  # (c, v)
        wanted = targets[i : i + step]
        chosen = logits.gather(1, wanted.unsqueeze(1)).squeeze(1)
        log_probs += (chosen - logits.logsumexp(dim=-1)).tolist()
        greedy += (logits.argmax(dim=-1) == wanted).tolist()
    return log_probs, greedy
