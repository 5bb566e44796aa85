"""`triaxial plan --validate ROWS.csv`: predictions compared with published runs."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpt.errors import ConfigError
from launch.planning.plan_report import aligned, seconds_text
from parallel.planner.hardware.tables import Hardware
from parallel.planner.published.memory import PublishedMemory, published_memory
from parallel.planner.published.rows import published_runs, read_rows
from parallel.planner.published.validate import (
    Comparison,
    calibrated_coverage,
    calibrated_errors,
    compare,
    coverage,
    kendall_tau,
    summary,
)


def validate(path: Path, hardware: Hardware) -> tuple[list[str], dict[str, Any]]:
    """Lines to print, and the figures as JSON. ConfigError: no row has a time or a rate, or a row is invalid."""
    rows = read_rows(path)
    runs, left_out = published_runs(rows, hardware)
    sizes, no_size = published_memory(rows, hardware)
    left_out += no_size
    if not runs and sizes:
        return _memory_lines(sizes, left_out), {"memory": _memory_json(sizes), "left_out": left_out}
    if not runs:
        why = left_out[0] if left_out else "none has the metric iter_time, tokens_per_s_per_gpu or tflops_per_gpu"
        raise ConfigError(f"{path} is invalid: no row can be predicted: {why}")
    comparisons = compare(runs)
    sources: dict[str, list[Comparison]] = {}
    for each in comparisons:
        sources.setdefault(each.run.source, []).append(each)
    lines = [*_table(comparisons), *(f"left out: {line}" for line in left_out), "", *_sources(sources), ""]
    blind = summary([each.error for each in comparisons])
    after = calibrated_errors(comparisons)
    tau = kendall_tau(comparisons)
    lines.append(f"blind: {blind.count} rows, median {blind.median:.1%}, 90th percentile {blind.p90:.1%}")
    if after:
        known, inside = summary(after), calibrated_coverage(comparisons)
        lines.append(
            f"calibrated on another row of the same stack, GPU and precision: {known.count} pairs, median "
            f"{known.median:.1%}, 90th percentile {known.p90:.1%}, {inside:.0%} in the interval"
        )
    lines.append(f"in the 90% interval: {coverage(comparisons):.0%}")
    lines.append("Kendall's tau inside families: " + ("no family" if tau is None else f"{tau:.2f}"))
    if sizes:
        lines += ["", *_memory_lines(sizes, [])]
    figures = {
        "memory": _memory_json(sizes),
        "blind": asdict(blind),
        "calibrated": asdict(summary(after)) if after else None,
        "coverage": coverage(comparisons),
        "calibrated_coverage": calibrated_coverage(comparisons),
        "kendall_tau": tau,
        "left_out": left_out,
        "rows": [
            {"id": c.run.id, "stack": c.run.stack.name, "measured_s": c.run.seconds, "predicted_s": c.predicted}
            for c in comparisons
        ],
    }
    return lines, figures


def _table(comparisons: Sequence[Comparison]) -> list[str]:
    rows = [["measured", "predicted", "error", "stack", "row"]]
    for each in comparisons:
        times = (seconds_text(each.run.seconds), seconds_text(each.predicted))
        rows.append([*times, f"{each.error:+.1%}", each.run.stack.name, each.run.id])
    return aligned(rows, left=2)


def _memory_lines(sizes: Sequence[PublishedMemory], left_out: Sequence[str]) -> list[str]:
    rows = [["measured", "predicted", "error", "metric", "row"]]
    for each in sizes:
        gib = (f"{each.measured / 2**30:.1f} GiB", f"{each.predicted / 2**30:.1f} GiB")
        rows.append([*gib, f"{each.error:+.1%}", each.metric, each.id])
    errors = [abs(each.error) for each in sizes]
    within = sum(error <= 0.05 for error in errors)
    found = summary(errors)
    return [
        *aligned(rows, left=2),
        *(f"left out: {line}" for line in left_out),
        f"memory: {found.count} rows, median {found.median:.1%}, largest {max(errors):.1%}, {within} within 5%",
    ]


def _memory_json(sizes: Sequence[PublishedMemory]) -> list[dict[str, Any]]:
    return [
        {"id": s.id, "metric": s.metric, "measured_bytes": s.measured, "predicted_bytes": s.predicted} for s in sizes
    ]


def _sources(sources: dict[str, list[Comparison]]) -> list[str]:
    rows = [["rows", "median", "90th percentile", "source"]]
    for source, own in sources.items():
        found = summary([each.error for each in own])
        rows.append([f"{found.count}", f"{found.median:.1%}", f"{found.p90:.1%}", source])
    return aligned(rows, left=1)
