"""Rank the answers to a prompt: levels from ranks or scores, ties, and answers with equal texts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from data_prep.conversations.conversation import Answer, Conversation, UnusableRecord, renumbered

MAX_LEVELS = (1 << 15) - 1  # of a ranking: token files keep 1 + level of each answer, as ids below 1 << 15
MAX_JOINED = 9  # answers of a ranking that is made of pairs: InstructGPT's labellers ranked up to 9


@dataclass(frozen=True)
class JudgedAnswer:
    """An answer as a source gives it. `value` orders the answers of a prompt, a higher one is better; None: unknown."""

    text: str
    value: float | None
    score: float | None = None
    model: str = ""


@dataclass(frozen=True)
class LeftOut:
    """An answer that is left out: why, its number in the source, and the bytes of its text."""

    reason: str
    number: int
    n_bytes: int


@dataclass(frozen=True)
class Ranked:
    """The ranked answers, and those that are left out."""

    answers: tuple[Answer, ...]
    left_out: tuple[LeftOut, ...]


def rank(judged: Sequence[JudgedAnswer], *, tie_margin: float) -> Ranked:
    """Give the answers their levels, in the source's order.

    Equal texts count once. If another answer's level is between those of equal texts, or equals one of them, the
    ranking contradicts itself, and all of these are left out.
    """
    left_out = [("empty_answer", i) for i, one in enumerate(judged) if not one.text.strip()]
    usable = {i: one for i, one in enumerate(judged) if one.text.strip()}
    left_out += [("unranked", i) for i, one in usable.items() if one.value is None or not math.isfinite(one.value)]
    known = {i: one for i, one in usable.items() if one.value is not None and math.isfinite(one.value)}
    levels = _levels({i: one.value for i, one in known.items() if one.value is not None}, tie_margin)
    by_text: dict[str, list[int]] = {}
    for i, one in known.items():
        by_text.setdefault(one.text, []).append(i)
    for copies in (copies for copies in by_text.values() if len(copies) > 1):
        own = sorted(levels[i] for i in copies)
        between = any(own[0] <= levels[i] <= own[-1] for i in known if i not in copies)
        is_contradiction = own[0] != own[-1] and between
        left_out += [("contradictory_ranks" if is_contradiction else "equal_text", i) for i in copies[1:]]
        if is_contradiction:
            left_out.append(("contradictory_ranks", copies[0]))
    gone = {i for _, i in left_out}
    kept = [Answer(one.text, levels[i], one.score, one.model) for i, one in known.items() if i not in gone]
    out = (LeftOut(reason, i, len(judged[i].text.encode())) for reason, i in left_out)
    return Ranked(renumbered(kept), tuple(sorted(out, key=lambda one: one.number)))


def check_ranking(ranked: Sequence[Answer], n_judged: int) -> None:
    """UnusableRecord if the answers hold no pair to compare (`one_completion`, `all_tied`), or `too_many_levels`."""
    if len(ranked) < 2:
        detail = f"{n_judged} given, {len(ranked)} left" if n_judged > 1 else ""
        raise UnusableRecord("one_completion", detail)
    levels = len({answer.level for answer in ranked})
    if levels == 1:
        raise UnusableRecord("all_tied", f"{len(ranked)} completions")
    if levels > MAX_LEVELS:
        raise UnusableRecord("too_many_levels", f"{levels}, at most {MAX_LEVELS} are possible")


def best(ranked: Sequence[Answer]) -> Answer:
    """Return the best answer. UnusableRecord: several are equally good."""
    if not ranked:
        raise UnusableRecord("no_answer")
    top = max(answer.level for answer in ranked)
    first, *others = [answer for answer in ranked if answer.level == top]
    if others:
        raise UnusableRecord("best_is_tied", f"{len(others) + 1} completions are equally good")
    return first


def _levels(values: dict[int, float], tie_margin: float) -> dict[int, int]:
    """Number the values in groups from the lowest on; a group's values are less than the margin above its lowest."""
    levels: dict[int, int] = {}
    level, lowest = -1, -math.inf
    for value, group in groupby(sorted(values, key=lambda i: values[i]), key=lambda i: values[i]):
        if value - lowest >= tie_margin:
            level, lowest = level + 1, value
        levels.update(dict.fromkeys(group, level))
    return levels


def is_pair(conversation: Conversation) -> bool:
    """Return whether a ranking says only that one answer is better than another."""
    return len(conversation.answers) == 2 and len({answer.level for answer in conversation.answers}) == 2


def can_join(pairs: Sequence[Conversation], another: Conversation) -> bool:
    """Return whether a ranking may be joined with pairs before it: the same prompt and labeller, few answers."""
    if not is_pair(another):
        return False
    texts = {answer.text for pair in (*pairs, another) for answer in pair.answers}
    return not pairs or (
        (pairs[0].prompt, pairs[0].labeller) == (another.prompt, another.labeller) and len(texts) <= MAX_JOINED
    )


def join_pairs(pairs: Sequence[Conversation]) -> list[tuple[Conversation, list[int]]]:
    """Join pairs of one prompt into rankings. Returns each ranking with the indices of its pairs.

    Pairs that share answers become one ranking if it ranks no two answers that their chains (a over b, b over c) leave
    open. Answers on one level are then never compared. Other pairs stay as they are.
    """
    worse: dict[str, set[str]] = {}  # of each answer, those below it
    for pair in pairs:
        low, high = sorted(pair.answers, key=lambda answer: answer.level)
        worse.setdefault(high.text, set()).add(low.text)
        worse.setdefault(low.text, set())
    for middle in worse:  # the transitive closure (Floyd-Warshall)
        for below in worse.values():
            if middle in below:
                below |= worse[middle]
    found: list[tuple[Conversation, list[int]]] = []
    for texts in _connected(pairs):
        members = [i for i, pair in enumerate(pairs) if pair.answers[0].text in texts]
        level = {text: len(worse[text]) for text in texts}
        is_ranking = all((b in worse[a]) == (level[a] > level[b]) for a in texts for b in texts)
        if not is_ranking:
            found += [(pairs[i], [i]) for i in members]
            continue
        first = {answer.text: answer for i in reversed(members) for answer in reversed(pairs[i].answers)}
        answers = renumbered([replace(first[text], level=level[text]) for text in texts])
        found.append((replace(pairs[members[0]], answers=answers), members))
    return sorted(found, key=lambda one: one[1])


def _connected(pairs: Sequence[Conversation]) -> list[list[str]]:
    """The texts of the answers, in groups that pairs connect, in order of appearance."""
    groups: list[list[str]] = []
    for pair in pairs:
        own = list(dict.fromkeys(answer.text for answer in pair.answers))
        touched = [group for group in groups if set(group) & set(own)]
        groups = [group for group in groups if group not in touched]
        groups.append(list(dict.fromkeys(text for group in (*touched, own) for text in group)))
    return groups
