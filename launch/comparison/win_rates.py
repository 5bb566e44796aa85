"""Win rates with intervals, agreement of labellers, and biases, from the votes of a comparison."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from gpt.evaluation.intervals import Interval, bootstrap_interval, wilson_interval
from launch.comparison.votes import Outcome, Vote

POINTS = {"first": 1.0, "tie": 0.5, "second": 0.0}


@dataclass(frozen=True)
class WinRate:
    """How often the first of two models was better. `rate` counts a tie as one half, `decided` leaves ties out."""

    first: str
    second: str
    wins: int
    ties: int
    losses: int
    n_prompts: int
    rate: Interval  # the interval is a bootstrap over prompts
    decided: Interval  # Wilson's interval, as if the votes were independent


@dataclass(frozen=True)
class VoteSummary:
    """All figures of a comparison."""

    n_votes: int
    labellers: dict[str, int]  # votes of each
    win_rates: list[WinRate]
    agreement: Interval  # pairs of votes on one question that name the same winner, of those without a tie
    agreement_with_ties: Interval
    left_chosen: Interval  # of the votes without a tie; far from one half, position matters
    longer_chosen: Interval  # of the votes without a tie on answers of different lengths


def summarise(votes: Sequence[Vote]) -> VoteSummary:
    """Compute all figures."""
    pairs = sorted({(vote.first, vote.second) for vote in votes})
    decided = [vote for vote in votes if vote.outcome != "tie"]
    unequal = [vote for vote in decided if vote.more_words != "tie"]
    outcomes = list(_pairs_of_votes(votes))
    no_ties = [pair for pair in outcomes if "tie" not in pair]
    return VoteSummary(
        n_votes=len(votes),
        labellers=dict(Counter(vote.labeller for vote in votes)),
        win_rates=[_win_rate(pair, votes) for pair in pairs],
        agreement=_share([a == b for a, b in no_ties]),
        agreement_with_ties=_share([a == b for a, b in outcomes]),
        left_chosen=_share([(vote.outcome == "first") == vote.first_is_left for vote in decided]),
        longer_chosen=_share([vote.outcome == vote.more_words for vote in unequal]),
    )


def _win_rate(pair: tuple[str, str], votes: Sequence[Vote]) -> WinRate:
    mine = [vote for vote in votes if (vote.first, vote.second) == pair]
    counts = Counter(vote.outcome for vote in mine)
    by_prompt: dict[str, list[float]] = {}
    for vote in mine:
        by_prompt.setdefault(vote.prompt_id, []).append(POINTS[vote.outcome])
    return WinRate(
        *pair,
        wins=counts["first"],
        ties=counts["tie"],
        losses=counts["second"],
        n_prompts=len(by_prompt),
        rate=bootstrap_interval(list(by_prompt.values())),
        decided=wilson_interval(counts["first"], counts["first"] + counts["second"]),
    )


def _pairs_of_votes(votes: Sequence[Vote]) -> Iterable[tuple[Outcome, Outcome]]:
    """The outcomes of each two labellers' votes on one question."""
    by_question: dict[tuple[str, str, str], list[Outcome]] = {}
    for vote in votes:
        by_question.setdefault(vote.question, []).append(vote.outcome)
    for outcomes in by_question.values():
        yield from combinations(outcomes, 2)


def _share(flags: Sequence[bool]) -> Interval:
    return wilson_interval(sum(flags), len(flags))
