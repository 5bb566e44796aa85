"""Score the last tokens of sequences: their log-probabilities under a model. Common prefixes are read once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpt.evaluation.batching.data_parallel import data_parallel_requests, gather_by_index
from gpt.evaluation.batching.forward_plan import ForwardPlan
from gpt.evaluation.batching.plan_runner import MAX_ROW_TOKENS, PlanRunner
from gpt.inference.model import InferenceModel, as_model
from gpt.model.gpt import GPT


@dataclass(frozen=True)
class Request:
    """Score the last `n_scored` tokens of a sequence, each given all tokens before it. At least one token is
    context."""

    tokens: list[int]
    n_scored: int

    def __post_init__(self) -> None:
        assert 0 <= self.n_scored < max(1, len(self.tokens)), f"{self.n_scored} scored of {len(self.tokens)} tokens"


@dataclass(frozen=True)
class Score:
    """The log-probability in nats of each scored token, and whether it is the most likely token."""

    log_probs: list[float]
    greedy: list[bool]


@dataclass(frozen=True)
class _ScoredToken:
    """A token to score in a pass: token `number` of the scored tokens of a request."""

    index: int  # of the token before it: row * t + column
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
    """Score all requests. Returns the scores in the order of the requests.

    Every rank of a layout must call it with equal arguments; all get all scores. A common prefix is read once, or with
    each sequence if `sharing` is False. A batch has up to `batch_tokens` positions, padding included. A sequence may
    have n_ctx + 1 tokens, since the last one is only predicted. `progress` is called with the number of requests that
    a pass finished, and at the end with the number of those that other data ranks finished.
    """
    inference_model = as_model(model)
    own = data_parallel_requests(
        [request.tokens for request in requests],
        data_rank=inference_model.data_rank,
        data_size=inference_model.data_size,
    )
    own_scores = _score_own(
        inference_model,
        [requests[number] for number in own],
        batch_tokens=batch_tokens,
        progress=progress or _no_progress,
        sharing=sharing,
    )
    scores = gather_by_index(inference_model, dict(zip(own, own_scores, strict=True)))
    if progress is not None and len(own) < len(requests):
        progress(len(requests) - len(own))
    return [scores[number] for number in range(len(requests))]


def _score_own(
    model: InferenceModel,
    requests: Sequence[Request],
    *,
    batch_tokens: int,
    progress: Callable[[int], None],
    sharing: bool,
) -> list[Score]:
    """Score the requests of one data rank."""
    log_probs = [[0.0] * request.n_scored for request in requests]
    greedy = [[False] * request.n_scored for request in requests]
    plan, requests_of = plan_scores(requests, batch_tokens=batch_tokens, sharing=sharing)
    tokens_of_pass, finished_by_pass = _scored_tokens(plan, requests, requests_of)
    runner = PlanRunner(model, plan)
    if without_scores := sum(not request.n_scored for request in requests):
        progress(without_scores)
    for planned, tokens, finished in zip(plan.passes, tokens_of_pass, finished_by_pass, strict=True):
        values, is_greedy = runner.log_probs(planned, [t.index for t in tokens], [t.target for t in tokens])
        for token, log_prob, is_likeliest in zip(tokens, values.tolist(), is_greedy.tolist(), strict=True):
            log_probs[token.request][token.number] = log_prob
            greedy[token.request][token.number] = is_likeliest
        if finished:
            progress(finished)
    return [Score(*result) for result in zip(log_probs, greedy, strict=True)]


def plan_scores(
    requests: Sequence[Request], *, batch_tokens: int, sharing: bool = True
) -> tuple[ForwardPlan, list[list[int]]]:
    """Plan the passes that score all requests. Returns the plan and, for each of its sequences, the requests it
    serves.

    A sequence omits the last token of its request, which is not read. Answers that differ only in their last token are
    therefore one sequence.
    """
    requests_of: dict[tuple[int, ...], list[int]] = {}
    for number, request in enumerate(requests):
        if request.n_scored:
            requests_of.setdefault(tuple(request.tokens[:-1]), []).append(number)
    max_row_tokens = min(MAX_ROW_TOKENS, batch_tokens)
    plan = ForwardPlan([*requests_of], row_tokens=max_row_tokens, batch_tokens=batch_tokens, sharing=sharing)
    return plan, [*requests_of.values()]


def _scored_tokens(
    plan: ForwardPlan, requests: Sequence[Request], requests_of: list[list[int]]
) -> tuple[list[list[_ScoredToken]], list[int]]:
    """Return for each pass the tokens that it scores, by rising index, and the number of requests that it finishes."""
    tokens: list[list[_ScoredToken]] = [[] for _ in plan.passes]
    finished = [0] * len(plan.passes)
    for sequence, numbers in enumerate(requests_of):
        max_scored = max(requests[number].n_scored for number in numbers)
        indices = plan.token_indices(sequence, len(plan.sequences[sequence]) - max_scored)
        for number in numbers:
            request = requests[number]
            own = indices[max_scored - request.n_scored :]
            targets = request.tokens[-request.n_scored :]
            for i, (at, target) in enumerate(zip(own, targets, strict=True)):
                tokens[at.pass_number].append(_ScoredToken(at.flat_index, target, number, i))
            finished[max(at.pass_number for at in own)] += 1
    for of_pass in tokens:
        of_pass.sort(key=lambda token: token.index)
    return tokens, finished


def _no_progress(_: int) -> None:
    return
