"""Rank the layouts of a cluster by predicted step time, and explain the rejected ones."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from parallel.layout.config import ParallelConfig
from parallel.planner.choice.candidates import Candidate, PlanRequest, Refusal, candidates
from parallel.planner.choice.footprint import Footprint, footprint
from parallel.planner.hardware.tables import Stack
from parallel.planner.search import layout_text
from parallel.planner.step_time.step import StepTime, step_time

USABLE = 0.92  # of the GPU's memory: CUDA's context, NCCL's buffers and fragmentation take the rest
EAGER = 1.09  # time of uncompiled blocks relative to compiled ones: torchtitan's published pairs
MEMORY_RULE = "the peak of memory must fit the GPU"
GIB = 2**30


@dataclass(frozen=True)
class RankedLayout:
    """A layout that fits, with its predicted step and the memory of its fullest rank."""

    candidate: Candidate
    time: StepTime
    memory: Footprint

    @property
    def words(self) -> str:
        return layout_words(self.candidate.parallel, self.candidate.micro_batch_size)


@dataclass(frozen=True)
class RejectedGroup:
    """Layouts that one rule rejects: how many, one of them, and the rule's message for it, which says what mends it."""

    rule: str
    count: int
    layout: str
    reason: str


@dataclass(frozen=True)
class Ranking:
    """The fastest layouts, best first; how many fit; and all others by the rule that rejects them."""

    gpus: int
    layouts: tuple[RankedLayout, ...]
    fitting: int
    rejected: tuple[RejectedGroup, ...]


def rank_layouts(request: PlanRequest, gpus: int, *, keep: int = 10) -> Ranking:
    """Search all layouts of `gpus` GPUs and return the `keep` fastest.

    A layout is simulated only if its time without bubbles is below that of the slowest one kept so far.
    """
    possible, refused = candidates(request, gpus)
    limit = USABLE * request.cluster.gpu.memory_bytes
    fitting: list[tuple[float, Candidate, Footprint]] = []
    too_large: list[tuple[Candidate, Footprint]] = []
    for each in possible:
        memory = footprint(each.job)
        if memory.peak > limit:
            too_large.append((each, memory))
        else:
            bound = step_time(each.job, request.cluster, stack_of(request, each), simulate=False).seconds
            fitting.append((bound, each, memory))
    best: list[RankedLayout] = []
    for bound, each, memory in sorted(fitting, key=lambda entry: entry[0]):
        if len(best) == keep and bound >= best[-1].time.seconds:
            break
        found = step_time(each.job, request.cluster, stack_of(request, each))
        best = sorted([*best, RankedLayout(each, found, memory)], key=_order)[:keep]
    rejected = [*_rule_groups(refused), *_memory_group(too_large, limit)]
    return Ranking(gpus, tuple(best), len(fitting), tuple(sorted(rejected, key=lambda group: -group.count)))


def rank_one(request: PlanRequest, each: Candidate) -> RankedLayout:
    """Predict one given layout, whether it fits or not."""
    return RankedLayout(each, step_time(each.job, request.cluster, stack_of(request, each)), footprint(each.job))


def stack_of(request: PlanRequest, each: Candidate) -> Stack:
    """The stack of a layout. Zero-bubble schedules cannot be compiled, so their blocks are eager."""
    slower = request.parallel.compile and not each.parallel.compile
    return replace(request.stack, overhead=request.stack.overhead * EAGER) if slower else request.stack


def layout_words(parallel: ParallelConfig, micro_batch_size: int) -> str:
    """A layout as `layout_text` writes it, with its micro-batch size and without what all layouts share."""
    usual = ParallelConfig()
    shown = replace(parallel, compile=usual.compile, async_tensor=usual.async_tensor)
    return f"{layout_text(shown)},micro_batch={micro_batch_size}"


def rule_of(reason: str) -> str:
    """The rule in a message, without its numbers and without what would mend it."""
    text = re.split(r"\. (?:Use|Start|Give|Set)\b|; nearest:", reason)[0]
    return re.sub(r"\d[\d,]*", "N", text)


def _order(ranked: RankedLayout) -> tuple[float, float, str]:
    """Of equally fast layouts, the one with less memory; of equal ones, the one with fewer settings."""
    return round(ranked.time.seconds, 9), ranked.memory.peak, ranked.words


def _rule_groups(refused: Sequence[Refusal]) -> list[RejectedGroup]:
    groups: dict[str, list[Refusal]] = {}
    for refusal in refused:
        groups.setdefault(rule_of(refusal.reason), []).append(refusal)
    return [
        RejectedGroup(rule, len(group), layout_words(group[0].parallel, group[0].micro_batch_size), group[0].reason)
        for rule, group in groups.items()
    ]


def _memory_group(too_large: Sequence[tuple[Candidate, Footprint]], limit: float) -> list[RejectedGroup]:
    """One group of all layouts that do not fit. Its example is the one that needs least, and how to make room."""
    if not too_large:
        return []
    each, memory = min(too_large, key=lambda entry: entry[1].peak)
    parts, needed = memory.parts, memory.peak / GIB
    largest = max(parts, key=lambda name: parts[name])
    can_shard_more = each.job.world_size > 1 and each.parallel.zero_stage < 3
    mend = {
        "activations": "a smaller micro-batch, parallel.recompute = 'full' or more tensor ranks",
        "temporary": "a smaller micro-batch or more tensor ranks",
    }.get(largest, "more GPUs, or parallel.zero_stage = 3" if can_shard_more else "more GPUs")
    reason = (
        f"{MEMORY_RULE}: the smallest of them needs {needed:.1f} GiB of {limit / GIB:.1f} usable, most of it "
        f"{largest} ({parts[largest] / GIB:.1f} GiB). Use {mend}"
    )
    return [RejectedGroup(MEMORY_RULE, len(too_large), layout_words(each.parallel, each.micro_batch_size), reason)]
