"""What `triaxial parity` tells: differences, the verdict, a table, `parity.json` and a picture; trains nothing."""

import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from gpt.errors import import_extra
from launch.parity_ranks import Result
from parallel.layout_choices import Choice, Skipped

DRAWN_AS_ZERO = 1e-10  # a log axis has no zero


@dataclass(frozen=True)
class Row:
    """One layout beside the reference; differences are relative, an entry a step."""

    choice: Choice
    result: Result
    loss_differences: list[float]
    grad_norm_differences: list[float]
    initial_weights_identical: bool


@dataclass(frozen=True)
class Tolerances:
    """The loss's holds at every step, the gradient norm's at step 1 (later it amplifies what the weights differ by)."""

    loss: float
    grad_norm: float


@dataclass(frozen=True)
class Report:
    """All that was found. `yardsticks` are one process with other micro-batch splits, which are not judged."""

    precision: str
    steps: int
    tolerances: Tolerances
    reference: Row
    yardsticks: list[Row]
    rows: list[Row]
    skipped: list[Skipped]

    @property
    def failures(self) -> list[str]:
        """A line for each way in which a layout is not the reference."""
        return [line for row in self.rows for line in row_failures(row, self.tolerances)]


def compare(choice: Choice, result: Result, reference: Result) -> Row:
    return Row(
        choice,
        result,
        relative_differences(result.losses, reference.losses),
        relative_differences(result.grad_norms, reference.grad_norms),
        result.initial_weights == reference.initial_weights,
    )


def relative_differences(ours: Sequence[float], reference: Sequence[float]) -> list[float]:
    return [abs(a - b) / max(abs(b), sys.float_info.min) for a, b in zip(ours, reference, strict=True)]


def row_failures(row: Row, tolerances: Tolerances) -> list[str]:
    found = []
    if not row.initial_weights_identical:
        found.append("it starts from other weights than one process")
    worst = max(row.loss_differences)
    if not worst <= tolerances.loss:
        step = row.loss_differences.index(worst) + 1
        found.append(f"the loss of step {step} differs by {worst:.1e}, above --tolerance {tolerances.loss:g}")
    norm = row.grad_norm_differences[0]
    if not norm <= tolerances.grad_norm:
        found.append(
            f"the gradient norm of step 1 differs by {norm:.1e}, above --norm-tolerance {tolerances.grad_norm:g}"
        )
    return [f"{row.result.name}: {failure}" for failure in found]


def print_report(report: Report) -> None:
    """The matrix, then what was skipped and why."""
    console = Console(width=None if sys.stdout.isatty() else 200)  # a log has room
    title = (
        f"{len(report.rows)} layouts against one process: {report.steps} steps in {report.precision}; differences are "
        f"relative, the largest of all steps"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layout", overflow="fold")
    last = f"step {report.steps}"
    for header in ("ranks", "micro-batch", "loss\nstep 1", last, "norm\nstep 1", last):
        table.add_column(header, justify="right")
    for header in ("loss\ndifference", "norm\nstep 1", "norm\ndifference", "same\nweights", "s"):
        table.add_column(header, justify="right")
    for row in [report.reference, *report.yardsticks, *report.rows]:
        table.add_row(*_cells(row), style="bold red" if row_failures(row, report.tolerances) else "")
    console.print(table)
    for reason, group in itertools.groupby(sorted(report.skipped, key=lambda s: s.reason), key=lambda s: s.reason):
        console.print(f"skipped {'; '.join(s.layout for s in group)}: {reason}", highlight=False, markup=False)


def _cells(row: Row) -> list[str]:
    losses, norms = row.result.losses, row.result.grad_norms
    figures = [f"{losses[0]:.6f}", f"{losses[-1]:.6f}", f"{norms[0]:.5g}", f"{norms[-1]:.5g}"]
    differences = [max(row.loss_differences), row.grad_norm_differences[0], max(row.grad_norm_differences)]
    return [
        row.result.name,
        str(row.choice.world_size),
        str(row.choice.micro_batch_size),
        *figures,
        *(f"{difference:.1e}" if difference else "0" for difference in differences),
        "yes" if row.initial_weights_identical else "NO",
        f"{row.result.seconds:.1f}",
    ]


def write_json(report: Report, path: Path) -> None:
    """`parity.json`: the figures over all layouts first, then every loss and norm of each."""
    table = {
        "steps": report.steps,
        "max_relative_loss_difference": max(max(row.loss_differences) for row in report.rows),
        "max_relative_grad_norm_difference": max(max(row.grad_norm_differences) for row in report.rows),
        "initial_weights_identical": all(row.initial_weights_identical for row in report.rows),
        "passed": not report.failures,
        "failures": report.failures,
        "precision": report.precision,
        "tolerance": report.tolerances.loss,
        "norm_tolerance": report.tolerances.grad_norm,
        "reference": _as_table(report.reference),
        "yardsticks": [_as_table(row) for row in report.yardsticks],
        "layouts": [_as_table(row) for row in report.rows],
        "skipped": [asdict(skipped) for skipped in report.skipped],
    }
    path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def _as_table(row: Row) -> dict[str, Any]:
    return {
        "layout": row.result.name,
        "world_size": row.choice.world_size,
        "micro_batch_size": row.choice.micro_batch_size,
        "max_relative_loss_difference": max(row.loss_differences),
        "max_relative_grad_norm_difference": max(row.grad_norm_differences),
        "relative_grad_norm_difference_at_step_1": row.grad_norm_differences[0],
        "initial_weights": row.result.initial_weights,
        "initial_weights_identical": row.initial_weights_identical,
        "seconds": row.result.seconds,
        "parallel": asdict(row.choice.parallel),
        "losses": row.result.losses,
        "grad_norms": row.result.grad_norms,
    }


def draw(report: Report, path: Path) -> None:
    """A picture of how far each layout's loss is from the reference's, step by step."""
    import_extra("matplotlib", extra="plots")
    from matplotlib.figure import Figure  # the plain class needs no display, and leaves no global state
    from matplotlib.ticker import MaxNLocator

    rows = [*report.yardsticks, *report.rows]
    figure = Figure(figsize=(11, max(5.0, 0.22 * len(rows) + 1)), layout="constrained")
    axes = figure.subplots()
    steps = range(1, report.steps + 1)
    styles = itertools.product(("-", "--", ":", "-."), [f"C{i}" for i in range(10)])
    for row, (style, colour) in zip(rows, itertools.cycle(styles)):
        heights = [max(difference, DRAWN_AS_ZERO) for difference in row.loss_differences]
        axes.plot(steps, heights, style, color=colour, linewidth=1.3, marker=".", markersize=4, label=row.result.name)
    axes.axhline(report.tolerances.loss, color="black", linewidth=1, label=f"tolerance {report.tolerances.loss:g}")
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel(f"relative difference of the loss (0 is drawn at {DRAWN_AS_ZERO:g})")
    axes.set_title(f"Every layout against one process, {report.precision}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="x-small")
    figure.savefig(path, dpi=150)
