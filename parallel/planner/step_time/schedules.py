"""Simulate a pipeline schedule micro-batch by micro-batch, in the order in which torch's schedule runs it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

Action = tuple[str, int, int]  # F, B, I or W (whole backward, of inputs, of weights), stage, micro-batch

LETTERS = {"FORWARD": "F", "FULL_BACKWARD": "B", "BACKWARD_INPUT": "I", "BACKWARD_WEIGHT": "W"}  # torch's names


@dataclass(frozen=True)
class StageTimes:
    """Seconds of each stage for a micro-batch, and until another rank has a stage's output (`send`).

    `inputs_share`: the part of a backward that gives the gradients of inputs.
    """

    forward: Sequence[float]
    backward: Sequence[float]
    inputs_share: float
    send: float


@dataclass(frozen=True)
class Program:
    """The actions of all ranks, each after the one that it waits for. Parallel lists, one entry for each action."""

    rank: tuple[int, ...]
    kind: tuple[int, ...]  # index in the durations: F, B, I, W of stage 0, then of stage 1 ...
    after: tuple[int, ...]  # index of the action that must end first, -1 without one
    sent: tuple[bool, ...]  # whether the output of that action comes from another rank


def step_makespan(schedule: str, ranks: int, micro_batches: int, times: StageTimes) -> float:
    """Seconds from the first forward to the last backward of a step.

    A long step is extrapolated from two shorter ones: each further round of micro-batches adds the same.
    """
    per_rank = len(times.forward) // ranks
    rest = micro_batches % ranks
    few = (3 if per_rank > 1 else 2) * ranks + rest
    by_rounds = schedule in ("interleaved_1f1b", "interleaved_zero_bubble")
    if micro_batches <= few + ranks or (by_rounds and rest):
        return makespan(program(schedule, ranks, per_rank, micro_batches), ranks, times)
    first = makespan(program(schedule, ranks, per_rank, few), ranks, times)
    second = makespan(program(schedule, ranks, per_rank, few + ranks), ranks, times)
    return second + (micro_batches - few - ranks) * (second - first) / ranks


def makespan(actions: Program, ranks: int, times: StageTimes) -> float:
    """Seconds of a program on `ranks` pipeline ranks, each of which runs its actions one after the other."""
    clock, ends = [0.0] * ranks, [0.0] * (len(actions.rank) + 1)  # ends[-1] stays 0: no action to wait for
    share, send = times.inputs_share, times.send
    durations: list[float] = []
    for forward, backward in zip(times.forward, times.backward, strict=True):
        durations += (forward, backward, backward * share, backward * (1 - share))
    for i, (rank, kind, after, sent) in enumerate(
        zip(actions.rank, actions.kind, actions.after, actions.sent, strict=True)
    ):
        starts = ends[after] + send if sent else ends[after]
        if starts < clock[rank]:
            starts = clock[rank]
        ends[i] = clock[rank] = starts + durations[kind]
    return max(clock)


@lru_cache(maxsize=256)
def program(schedule: str, ranks: int, stages_per_rank: int, micro_batches: int) -> Program:
    """Return the actions of a schedule in an order in which they can be simulated."""
    actions = order(schedule, ranks, stages_per_rank, micro_batches)
    last = ranks * stages_per_rank - 1
    rank_of = {stage: rank for rank, own in enumerate(actions) for _, stage, _ in own}
    done: dict[tuple[bool, int, int], int] = {}
    waiting: dict[tuple[bool, int, int], int] = {}
    position, ready = [0] * ranks, list(range(ranks))
    columns: tuple[list[Any], ...] = ([], [], [], [])
    while ready:
        rank = ready.pop()
        for kind, stage, batch in actions[rank][position[rank] :]:
            needed = _needed(kind, stage, batch, last)
            if needed is not None and needed not in done:
                waiting[needed] = rank
                break
            position[rank] += 1
            after = -1 if needed is None else done[needed]
            sent = needed is not None and rank_of[needed[1]] != rank
            for column, value in zip(columns, (rank, 4 * stage + "FBIW".index(kind), after, sent), strict=True):
                column.append(value)
            if kind != "W":
                key = (kind == "F", stage, batch)
                done[key] = len(columns[0]) - 1
                if key in waiting:
                    ready.append(waiting.pop(key))
    assert all(position[rank] == len(own) for rank, own in enumerate(actions)), "the order has a cycle"
    return Program(*(tuple(column) for column in columns))


def order(schedule: str, ranks: int, stages_per_rank: int, micro_batches: int) -> list[list[Action]]:
    """Return the actions of each pipeline rank. Those of schedules with several stages are torch's own."""
    if schedule in ("1f1b", "gpipe"):
        return [_one_stage(schedule, rank, ranks, micro_batches) for rank in range(ranks)]
    import torch.distributed.pipelining.schedules as schedules
    from torch import nn

    kinds: dict[str, type[Any]] = {
        "interleaved_1f1b": schedules.ScheduleInterleaved1F1B,
        "interleaved_zero_bubble": schedules.ScheduleInterleavedZeroBubble,
        "zbv_zero_bubble": schedules.ScheduleZBVZeroBubble,
        "dualpipev": schedules.ScheduleDualPipeV,
    }
    # A stage's facts are enough: without the plan of messages, nothing needs a process group.
    only_order = type("OnlyOrder", (kinds[schedule],), {"_prepare_schedule_with_comms": lambda *_, **__: None})
    facts = {"num_stages": ranks * stages_per_rank, "group_size": ranks, "group_rank": 0, "submod": nn.Identity()}
    stages = [SimpleNamespace(**facts, is_last=False, stage_index=0, has_backward=True) for _ in range(stages_per_rank)]
    found = only_order(stages, micro_batches, loss_fn=lambda output, target: output).pipeline_order
    return [_actions(found[rank]) for rank in range(ranks)]


def _one_stage(schedule: str, rank: int, ranks: int, micro_batches: int) -> list[Action]:
    if schedule == "gpipe":
        return [(kind, rank, i) for kind in "FB" for i in range(micro_batches)]
    ahead = min(ranks - rank, micro_batches)
    actions: list[Action] = [("F", rank, i) for i in range(ahead)]
    for i in range(micro_batches):
        actions.append(("B", rank, i))
        if ahead + i < micro_batches:
            actions.append(("F", rank, ahead + i))
    return actions


def _actions(found: Sequence[Any]) -> list[Action]:
    """Translate torch's actions. A pause has no entry: waiting for a message is simulated."""
    each = [action for entry in found if entry is not None for action in entry.sub_actions or (entry,)]
    return [(LETTERS[a.computation_type.name], a.stage_index, a.microbatch_index) for a in each]


def _needed(kind: str, stage: int, batch: int, last: int) -> tuple[bool, int, int] | None:
    """The action that must end before this one: (whether it is a forward, stage, micro-batch)."""
    if kind == "F":
        return (True, stage - 1, batch) if stage > 0 else None
    if kind == "W":
        return None
    return (False, stage + 1, batch) if stage < last else (True, stage, batch)
