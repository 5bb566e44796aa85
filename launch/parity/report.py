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
from launch.parity.ranks import Result
from parallel.planner.search import Choice, Skipped

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
    reference: list[Row]  # of one, or none where it has failed itself
    yardsticks: list[Row]
    rows: list[Row]
    skipped: list[Skipped]
    stopped_by: str | None = None  # what ended it before all had been trained

    @property
    def failures(self) -> list[str]:
        """A line for each way in which a layout is not the reference, and what a layout failed with."""
        found = [line for row in self.rows for line in row_failures(row, self.tolerances)]
        return found if self.stopped_by is None else [*found, self.stopped_by]

    @property
    def yardstick_spread(self) -> float | None:
        """How far one process's micro-batch splits are from each other: the largest relative difference of the loss,
        of all pairs and steps. None where there is only one."""
        losses = [row.result.losses for row in [*self.reference, *self.yardsticks]]
        return max((max(relative_differences(a, b)) for a, b in itertools.combinations(losses, 2)), default=None)

    def times_spread(self, row: Row) -> float | None:
        """A layout's largest difference of the loss in units of the spread, if that is one."""
        spread = self.yardstick_spread
        return max(row.loss_differences) / spread if spread else None


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
    spread = report.yardstick_spread
    beside = () if spread is None else ("times the\nspread",)
    for header in ("loss\ndifference", *beside, "norm\nstep 1", "norm\ndifference", "same\nweights", "s"):
        table.add_column(header, justify="right")
    for row in [*report.reference, *report.yardsticks, *report.rows]:
        failed = row in report.rows and row_failures(row, report.tolerances)
        table.add_row(*_cells(report, row), style="bold red" if failed else "")
    console.print(table)
    if spread is not None:
        console.print(
            f"the spread is {spread:.1e}: the largest difference of the loss among one process's "
            f"{1 + len(report.yardsticks)} splits into micro-batches",
            highlight=False,
        )
    for reason, group in itertools.groupby(sorted(report.skipped, key=lambda s: s.reason), key=lambda s: s.reason):
        console.print(f"skipped {'; '.join(s.layout for s in group)}: {reason}", highlight=False, markup=False)


def _cells(report: Report, row: Row) -> list[str]:
    losses, norms = row.result.losses, row.result.grad_norms
    figures = [f"{losses[0]:.6f}", f"{losses[-1]:.6f}", f"{norms[0]:.5g}", f"{norms[-1]:.5g}"]
    loss, *norm = (
        f"{difference:.1e}" if difference else "0"
        for difference in (max(row.loss_differences), row.grad_norm_differences[0], max(row.grad_norm_differences))
    )
    times = report.times_spread(row)
    beside = [] if report.yardstick_spread is None else ["" if times is None else f"{times:.1f}"]
    return [
        row.result.name,
        str(row.choice.world_size),
        str(row.choice.micro_batch_size),
        *figures,
        loss,
        *beside,
        *norm,
        "yes" if row.initial_weights_identical else "NO",
        f"{row.result.seconds:.1f}",
    ]


def write_json(report: Report, path: Path) -> None:
    """`parity.json`: the figures over all layouts first, then every loss and norm of each."""
    table = {
        "steps": report.steps,
        "max_relative_loss_difference": max((max(row.loss_differences) for row in report.rows), default=None),
        "max_relative_grad_norm_difference": max((max(row.grad_norm_differences) for row in report.rows), default=None),
        "initial_weights_identical": all(row.initial_weights_identical for row in report.rows) if report.rows else None,
        "passed": not report.failures,
        "failures": report.failures,
        "precision": report.precision,
        "tolerance": report.tolerances.loss,
        "norm_tolerance": report.tolerances.grad_norm,
        "yardstick_spread": report.yardstick_spread,
        "reference": _as_table(report, report.reference[0]) if report.reference else None,
        "yardsticks": [_as_table(report, row) for row in report.yardsticks],
        "layouts": [_as_table(report, row) for row in report.rows],
        "skipped": [asdict(skipped) for skipped in report.skipped],
    }
    path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def _as_table(report: Report, row: Row) -> dict[str, Any]:
    return {
        "layout": row.result.name,
        "world_size": row.choice.world_size,
        "micro_batch_size": row.choice.micro_batch_size,
        "max_relative_loss_difference": max(row.loss_differences),
        "times_yardstick_spread": report.times_spread(row),
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
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # the plain class needs no display, and leaves no global state
    from matplotlib.ticker import MaxNLocator

    rows = [*report.yardsticks, *report.rows]
    figure = Figure(figsize=(11, max(5.0, 0.22 * len(rows) + 1)), layout="constrained")
    axes = figure.subplots()
    steps = range(1, report.steps + 1)
    styles = itertools.product(("-", "--", ":", "-."), [colormaps["tab10"](i) for i in range(10)])
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
    figure.savefig(path, dpi=150, format="png")
