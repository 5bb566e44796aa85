"""Log-probabilities that a model gives to the ends of token sequences, beginnings in common read once; never samples.

Shapes: b rows of a pass, t tokens of a row, n tokens that are scored there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt.evaluation.batching.data_parallel import data_parallel_requests, gather_by_index
from gpt.evaluation.batching.prefix_tree import Plan, Read
from gpt.inference.kv_cache import KeyValueCache
from gpt.inference.model import ForwardInputs, InferenceModel, as_model
from gpt.model.gpt import GPT

# Ends laid side by side in one row: longer rows are faster products, but attention grows with their square.
ROW_TOKENS = 512


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


@dataclass(frozen=True)
class _Wanted:
    """A token to be scored in a pass: after which place, and where its score goes."""

    place: int  # row * t + column
    target: int
    request: int
    number: int


def score(
    model: GPT | InferenceModel,
    requests: Sequence[Request],
    *,
    batch_tokens: int,
    progress: Callable[[int], None] | None = None,
    sharing: bool = True,
) -> list[Score]:
    """Scores in the order of the requests; over a layout every rank calls it alike and has them all.

    Tokens that sequences have in common from their beginning are read once (`sharing` False: once a sequence); a batch
    holds up to `batch_tokens` positions, padding included. Sequences may be up to n_ctx + 1 tokens long, since the last
    one is only predicted. `progress` is called with the number of requests that a pass finished, and at the end with
    those of other data ranks.
    """
    asked = as_model(model)
    mine = data_parallel_requests(asked, [request.tokens for request in requests])
    found = _score(
        asked, [requests[number] for number in mine], batch_tokens=batch_tokens, progress=progress, sharing=sharing
    )
    scores = gather_by_index(asked, dict(zip(mine, found, strict=True)))
    if progress is not None and len(mine) < len(requests):
        progress(len(requests) - len(mine))
    return [scores[number] for number in range(len(requests))]


def _score(
    model: InferenceModel,
    requests: Sequence[Request],
    *,
    batch_tokens: int,
    progress: Callable[[int], None] | None,
    sharing: bool,
) -> list[Score]:
    """Those of one data rank."""
    log_probs = [[0.0] * request.n_scored for request in requests]
    greedy = [[False] * request.n_scored for request in requests]
    plan, owners = plan_scores(requests, batch_tokens=batch_tokens, sharing=sharing)
    wanted, finished = _wanted(plan, requests, owners)
    reader = Reader(model, plan)
    if progress is not None and (at_once := sum(not request.n_scored for request in requests)):
        progress(at_once)
    for number, read in enumerate(plan.reads):
        asked = wanted[number]
        found, likeliest = reader.log_probs(read, [w.place for w in asked], [w.target for w in asked])
        for w, log_prob, is_greedy in zip(asked, found.tolist(), likeliest.tolist(), strict=True):
            log_probs[w.request][w.number] = log_prob
            greedy[w.request][w.number] = is_greedy
        if progress is not None and finished[number]:
            progress(finished[number])
    return [Score(*result) for result in zip(log_probs, greedy, strict=True)]


def plan_scores(
    requests: Sequence[Request], *, batch_tokens: int, sharing: bool = True
) -> tuple[Plan, list[list[int]]]:
    """The passes that score all requests, and the requests of each of the plan's sequences. The last token of a request
    is not read, so that choices of one token are one sequence."""
    owners: dict[tuple[int, ...], list[int]] = {}
    for number, request in enumerate(requests):
        if request.n_scored:
            owners.setdefault(tuple(request.tokens[:-1]), []).append(number)
    sequences = list(owners)
    row_tokens = min(ROW_TOKENS, batch_tokens)
    return Plan(sequences, row_tokens=row_tokens, batch_tokens=batch_tokens, sharing=sharing), list(owners.values())


class Reader:
    """Runs the passes of a plan, which must come in order: a pass may go on from what the ones before it cached."""

    def __init__(self, model: InferenceModel, plan: Plan, *, more: int = 0) -> None:
        """`more`: positions that the caller will append after a pass."""
        self.model = model
        self.plan = plan
        length = plan.cache_length
        self.cache: dict[str, KeyValueCache] = model.make_cache(length + more) if length else {}

    def prepared(self, read: Read) -> ForwardInputs:
        """A pass of the plan for the model, the cache rewound to where it goes on."""
        device = self.model.device
        tokens = torch.from_numpy(read.tokens(self.plan.sequences)).to(device)
        positions = torch.from_numpy(read.positions()).to(device)
        mask = torch.from_numpy(read.mask()).unsqueeze(1).to(device) if read.needs_mask else None  # (b, 1, t, s)
        if not read.earlier and not read.kept:
            return ForwardInputs(tokens, positions, mask)
        for layer in self.cache.values():
            layer.rewind(read.earlier)
        return ForwardInputs(tokens, positions, mask, self.cache, read.earlier)

    @torch.inference_mode()
    def next_logits(self, read: Read, places: Tensor) -> Tensor:
        """As InferenceModel.next_logits, for one pass with a cache."""
        return self.model.next_logits(self.prepared(read), places=places)

    @torch.inference_mode()
    def log_probs(self, read: Read, places: list[int], targets: list[int]) -> tuple[Tensor, Tensor]:
        """As InferenceModel.log_probs, for one pass."""
        return self.model.log_probs(
            self.prepared(read),
            places=torch.tensor(places, dtype=torch.int64, device=self.model.device),
            targets=torch.tensor(targets, dtype=torch.int64, device=self.model.device),
        )


def _wanted(plan: Plan, requests: Sequence[Request], owners: list[list[int]]) -> tuple[list[list[_Wanted]], list[int]]:
    """For each pass the tokens that it scores, by place, and the number of requests that it finishes."""
    wanted: list[list[_Wanted]] = [[] for _ in plan.reads]
    finished = [0] * len(plan.reads)
    widths = [read.width for read in plan.reads]
    for sequence, numbers in enumerate(owners):
        length = len(plan.sequences[sequence])
        places = plan.places(sequence, length - max(requests[number].n_scored for number in numbers))
        for number in numbers:
            request = requests[number]
            own = places[len(places) - request.n_scored :]
            targets = request.tokens[-request.n_scored :]
            for i, (place, target) in enumerate(zip(own, targets, strict=True)):
                at = place.row * widths[place.read] + place.column
                wanted[place.read].append(_Wanted(at, target, number, i))
            finished[max(place.read for place in own)] += 1
    for asked in wanted:
        asked.sort(key=lambda w: w.place)
    return wanted, finished
