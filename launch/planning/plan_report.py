"""The tables and the JSON of `triaxial plan`."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpt.telemetry.screen import counted, human_count
from launch.planning.plan_figures import PlanFigures
from parallel.planner.choice.candidates import PlanRequest
from parallel.planner.choice.ranking import MEMORY_RULE, RankedLayout, Ranking

GIB = 2**30


@dataclass(frozen=True)
class PlannedLayout:
    """A layout with its prediction and the figures of its run."""

    ranked: RankedLayout
    run: PlanFigures
    measured_peak: int | None = None  # bytes, by the dry run

    @property
    def gpus(self) -> int:
        return self.ranked.candidate.job.world_size


def layout_table(planned: Sequence[PlannedLayout], request: PlanRequest) -> list[str]:
    """One line a layout, the fastest first."""
    priced = any(each.run.cost is not None for each in planned)
    rows = [["", "step", "90% from", "to", "tokens/s", "MFU", "days", *(["cost"] if priced else []), "MWh", "memory"]]
    rows[0] += ["bubble", "tensor", "pipeline", "data", "layout"]
    for number, each in enumerate(planned, 1):
        time, job = each.ranked.time, each.ranked.candidate.job
        share = {key: f"{value / time.seconds:.1%}" for key, value in time.parts.items()}
        rows.append(
            [
                f"{number}",
                *(seconds_text(value) for value in (time.seconds, time.low, time.high)),
                human_count(time.tokens_per_s(job)),
                f"{time.mfu(job, request.cluster):.1%}",
                _short(each.run.days, "1"),
                *([f"{each.run.cost:,.0f}"] if each.run.cost is not None else []),
                "-" if each.run.energy_kwh is None else _short(each.run.energy_kwh / 1000, "0"),
                f"{each.ranked.memory.peak / GIB:.1f} GiB",
                *(share[key] for key in ("bubble", "tensor", "pipeline", "data")),
                each.ranked.words,
            ]
        )
    return aligned(rows, left=1)


def _short(value: float, digits: str) -> str:
    """A number with this many decimals, or two digits if it is below one."""
    return f"{value:,.{digits}f}" if value >= 1 else f"{value:.2g}"


def memory_table(planned: Sequence[PlannedLayout]) -> list[str]:
    """Peak memory of the fullest rank by kind, in GiB."""
    names = list(planned[0].ranked.memory.parts)
    rows = [["", *names, "peak", "dry run"]]
    for number, each in enumerate(planned, 1):
        parts = each.ranked.memory.parts
        dry = "-" if each.measured_peak is None else f"{each.measured_peak / GIB:.1f}"
        sizes = [f"{parts[name] / GIB:.1f}" for name in names]
        rows.append([f"{number}", *sizes, f"{each.ranked.memory.peak / GIB:.1f}", dry])
    return aligned(rows)


def rejected_lines(ranking: Ranking, *, most: int = 12) -> list[str]:
    """The rules that reject layouts, memory first: how many, and the message for one, which says what mends it."""
    lines = []
    groups = sorted(ranking.rejected, key=lambda group: group.rule != MEMORY_RULE)  # the rest as ranked: most first
    for group in groups[:most]:
        lines += [f"{counted(group.count, 'layout')}, such as {group.layout}:", f"    {group.reason}"]
    if others := groups[most:]:
        count = counted(sum(group.count for group in others), "layout")
        lines.append(f"{count} more by {counted(len(others), 'other rule')}; --rejected shows them, --json lists all")
    return lines


def scaling_table(best: Sequence[PlannedLayout], knee: int) -> list[str]:
    """The best layout of each number of GPUs; the knee is the last whose doubling gave 1.6 times the speed."""
    priced = any(each.run.cost is not None for each in best)
    rows = [["GPUs", "step", "tokens/s", "of linear", "days", *(["cost"] if priced else []), "layout"]]
    first = best[0]
    for each in best:
        time, job = each.ranked.time, each.ranked.candidate.job
        linear = first.ranked.time.tokens_per_s(first.ranked.candidate.job) * each.gpus / first.gpus
        rows.append(
            [
                f"{each.gpus:,}{' (knee)' if each.gpus == knee else ''}",
                seconds_text(time.seconds),
                human_count(time.tokens_per_s(job)),
                f"{time.tokens_per_s(job) / linear:.0%}",
                f"{each.run.days:,.1f}",
                *([f"{each.run.cost:,.0f}"] if each.run.cost is not None else []),
                each.ranked.words,
            ]
        )
    return aligned(rows, left=1)


def knee_of(best: Sequence[PlannedLayout]) -> int:
    """The number of GPUs after which doubling gives less than 1.6 times the tokens a second."""
    for before, after in itertools.pairwise(best):
        gain = _speed(after) / _speed(before)
        if gain < 1.6 ** math.log2(after.gpus / before.gpus):
            return before.gpus
    return best[-1].gpus


def _speed(each: PlannedLayout) -> float:
    return each.ranked.time.tokens_per_s(each.ranked.candidate.job)


def as_json(rankings: Sequence[tuple[Ranking, list[PlannedLayout]]], request: PlanRequest) -> dict[str, Any]:
    """All figures with full precision. Seconds, bytes, and shares of one."""
    return {
        "gpu": request.cluster.gpu.name,
        "network": request.cluster.network.name,
        "gpus_per_node": request.cluster.node,
        "stack": request.stack.name,
        "plans": [
            {
                "gpus": ranking.gpus,
                "fitting": ranking.fitting,
                "layouts": [_layout_json(each, request) for each in planned],
                "rejected": [asdict(group) for group in ranking.rejected],
            }
            for ranking, planned in rankings
        ],
    }


def _layout_json(each: PlannedLayout, request: PlanRequest) -> dict[str, Any]:
    ranked, candidate = each.ranked, each.ranked.candidate
    return {
        "layout": ranked.words,
        "parallel": asdict(candidate.parallel),
        "micro_batch_size": candidate.micro_batch_size,
        "micro_batches": candidate.job.micro_batches,
        "step_s": ranked.time.seconds,
        "step_low_s": ranked.time.low,
        "step_high_s": ranked.time.high,
        "parts_s": ranked.time.parts,
        "tokens_per_s": ranked.time.tokens_per_s(candidate.job),
        "mfu": ranked.time.mfu(candidate.job, request.cluster),
        "memory_bytes": {name: round(size) for name, size in ranked.memory.parts.items()},
        "peak_bytes": round(ranked.memory.peak),
        "dry_run_peak_bytes": each.measured_peak,
        "run": {**asdict(each.run), "days": each.run.days},
    }


def seconds_text(seconds: float) -> str:
    """Three digits: 12.3 s, 0.123 s."""
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:,.0f} s"


def aligned(rows: Sequence[Sequence[str]], *, left: int = 0) -> list[str]:
    """Rows with columns of equal width; the last `left` columns are aligned to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    split = len(widths) - left
    return [
        "  ".join(
            cell.rjust(width) if column < split else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
