"""The report of `triaxial parity`: differences, failures, the table, and the text of `parity.json`."""

import itertools
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich import box
from rich.table import Table

from gpt.telemetry.screen import counted
from launch.parity.gradients import gradient_differences
from launch.parity.ranks import LATER_STEPS, LayoutResult
from launch.processes.terminal import SafeConsole
from parallel.planner.search import Choice, Skipped


@dataclass(frozen=True)
class Row:
    """One layout compared with the reference; differences are relative, one entry per step.

    `gradient_differences`: of each parameter's gradient at step 1, in the model's order.
    """

    choice: Choice
    result: LayoutResult
    loss_differences: list[float]
    grad_norm_differences: list[float]
    initial_weights_identical: bool
    gradient_differences: dict[str, float]

    @property
    def largest_gradient_difference(self) -> float:
        """NaN if there is one."""
        return largest(self.gradient_differences.values())


@dataclass(frozen=True)
class ResumeRow:
    """A checkpoint that one engine saved and another loaded: losses of the steps after it.

    `differences` are relative to the losses of the engine that saved and trained on.
    """

    saver: str
    loader: str
    losses: list[float]
    differences: list[float]

    @property
    def name(self) -> str:
        return f"{self.saver} -> {self.loader}"


@dataclass(frozen=True)
class Tolerances:
    """Bounds on relative differences: of the loss at every step, of the gradient norm and each gradient at step 1 only.

    In later steps the gradient norm amplifies the differences of the weights.
    """

    loss: float
    grad_norm: float
    gradient: float


@dataclass(frozen=True)
class ParityReport:
    """All results. `yardsticks`: one process with other micro-batch splits; they cannot fail."""

    precision: str
    steps: int
    tolerances: Tolerances
    reference: list[Row]  # one row, or none if the reference itself failed
    yardsticks: list[Row]
    rows: list[Row]
    skipped: list[Skipped]
    resumes: list[ResumeRow] = field(default_factory=list)
    stopped_by: str | None = None  # the error that ended the command before all layouts were trained

    @property
    def failures(self) -> list[str]:
        """One line for each difference above its tolerance, and the error that ended the command, if any."""
        found = [line for row in self.rows for line in row_failures(row, self.tolerances)]
        found += [line for row in self.resumes for line in resume_failures(row, self.tolerances, steps=self.steps)]
        return found if self.stopped_by is None else [*found, self.stopped_by]

    @property
    def yardstick_spread(self) -> float | None:
        """The largest relative difference of the loss between micro-batch splits of one process, over all pairs and
        steps. None if there is only one split."""
        losses = [row.result.losses for row in [*self.reference, *self.yardsticks]]
        return max((max(relative_differences(a, b)) for a, b in itertools.combinations(losses, 2)), default=None)

    def times_spread(self, row: Row) -> float | None:
        """A layout's largest difference of the loss as a multiple of the spread; None without a spread above 0."""
        spread = self.yardstick_spread
        return max(row.loss_differences) / spread if spread else None


def compare(choice: Choice, result: LayoutResult, reference: LayoutResult) -> Row:
    return Row(
        choice,
        result,
        relative_differences(result.losses, reference.losses),
        relative_differences(result.grad_norms, reference.grad_norms),
        result.initial_weights == reference.initial_weights,
        gradient_differences(result.gradients, reference.gradients),
    )


def compare_resume(saver: LayoutResult, loader: LayoutResult) -> ResumeRow:
    differences = relative_differences(loader.later_losses, saver.later_losses)
    return ResumeRow(saver.name, loader.name, loader.later_losses, differences)


def relative_differences(values: Sequence[float], reference: Sequence[float]) -> list[float]:
    return [abs(a - b) / max(abs(b), sys.float_info.min) for a, b in zip(values, reference, strict=True)]


def row_failures(row: Row, tolerances: Tolerances) -> list[str]:
    found = []
    if not row.initial_weights_identical:
        found.append("its initial weights differ from those of one process")
    worst = max(row.loss_differences)
    if not worst <= tolerances.loss:
        step = row.loss_differences.index(worst) + 1
        found.append(f"the loss of step {step} differs by {worst:.1e}, above --tolerance {tolerances.loss:g}")
    norm = row.grad_norm_differences[0]
    if not norm <= tolerances.grad_norm:
        found.append(
            f"the gradient norm of step 1 differs by {norm:.1e}, above --norm-tolerance {tolerances.grad_norm:g}"
        )
    wrong = {name: d for name, d in row.gradient_differences.items() if not d <= tolerances.gradient}
    if wrong:
        first, worst = next(iter(wrong)), largest(wrong.values())
        more = f"; {len(wrong)} parameters differ, by up to {worst:.1e}" if len(wrong) > 1 else ""
        found.append(
            f"the gradient of {first} at step 1 differs by {wrong[first]:.1e}, above --gradient-tolerance "
            f"{tolerances.gradient:g}{more}"
        )
    return [f"{row.result.name}: {failure}" for failure in found]


def resume_failures(row: ResumeRow, tolerances: Tolerances, *, steps: int) -> list[str]:
    worst = largest(row.differences)
    if worst <= tolerances.loss:
        return []
    step = steps + 1 + next(i for i, difference in enumerate(row.differences) if not difference <= tolerances.loss)
    return [
        f"{row.name}: after loading the checkpoint, the loss of step {step} differs from that of the engine that "
        f"saved it, by up to {worst:.1e}, above --tolerance {tolerances.loss:g}"
    ]


def largest(values: Iterable[float]) -> float:
    """The largest value, 0 of none; NaN if there is one."""
    found = list(values)
    return math.nan if any(map(math.isnan, found)) else max(found, default=0.0)


def print_report(report: ParityReport) -> None:
    """Print the table of layouts, then the skipped layouts with the reason."""
    console = SafeConsole(width=None if sys.stdout.isatty() else 200)  # wide enough for whole rows in a log
    title = (
        f"{counted(len(report.rows), 'layout')} against one process: {counted(report.steps, 'step')} in "
        f"{report.precision}; differences are relative, maximum over all steps"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    first, *others = headers(report)
    table.add_column(first, overflow="fold")
    for header in others:
        table.add_column(header, justify="right")
    for row in [*report.reference, *report.yardsticks, *report.rows]:
        failed = row in report.rows and row_failures(row, report.tolerances)
        table.add_row(*cells(report, row), style="bold red" if failed else "")
    console.print(table)
    if (spread := report.yardstick_spread) is not None:
        console.print(
            f"the spread is {spread:.1e}: the largest difference of the loss between {1 + len(report.yardsticks)} "
            f"splits of one process into micro-batches",
            highlight=False,
        )
    for resume in report.resumes:
        worst = largest(resume.differences)
        console.print(
            f"checkpoint of step {report.steps}, {resume.name}: the losses of the next {LATER_STEPS} steps differ by "
            f"{f'up to {worst:.1e}' if worst else '0'}",
            highlight=False,
            markup=False,
        )
    for reason, group in itertools.groupby(sorted(report.skipped, key=lambda s: s.reason), key=lambda s: s.reason):
        console.print(f"skipped {'; '.join(s.layout for s in group)}: {reason}", highlight=False, markup=False)


def verdict(report: ParityReport) -> str:
    """Say in one line whether all layouts agree with one process."""
    if report.failures:
        failed = sum(bool(row_failures(row, report.tolerances)) for row in report.rows)
        return f"parity: FAILED: {failed} of {len(report.rows)} layouts differ; {len(report.failures)} failures follow"
    found, allowed = report.rows, report.tolerances
    loss = largest(difference for row in found for difference in row.loss_differences)
    gradient = largest(row.largest_gradient_difference for row in found)
    return (
        f"parity: PASSED: all {len(found)} layouts agree with one process: loss within {loss:.1e} (tolerance "
        f"{allowed.loss:g}), gradients of step 1 within {gradient:.1e} ({allowed.gradient:g}), same starting weights"
    )


def headers(report: ParityReport) -> list[str]:
    """The titles of a layout's figures, in the order of `cells`."""
    last = f"step {report.steps}"
    times_spread = () if report.yardstick_spread is None else ("times the\nspread",)
    differences = ("loss\ndifference", *times_spread, "gradients\nstep 1", "norm\nstep 1", "norm\ndifference")
    losses = ("loss\nstep 1", last, "norm\nstep 1", last)
    return ["layout", "ranks", "micro-batch", *losses, *differences, "same\nweights", "s"]


def cells(report: ParityReport, row: Row) -> list[str]:
    losses, norms = row.result.losses, row.result.grad_norms
    figures = [f"{losses[0]:.6f}", f"{losses[-1]:.6f}", f"{norms[0]:.5g}", f"{norms[-1]:.5g}"]
    loss, gradients, *norm = (
        f"{difference:.1e}" if difference else "0"
        for difference in (
            max(row.loss_differences),
            row.largest_gradient_difference,
            row.grad_norm_differences[0],
            max(row.grad_norm_differences),
        )
    )
    times = report.times_spread(row)
    times_spread = [] if report.yardstick_spread is None else ["" if times is None else f"{times:.1f}"]
    return [
        row.result.name,
        str(row.choice.world_size),
        str(row.choice.micro_batch_size),
        *figures,
        loss,
        *times_spread,
        gradients,
        *norm,
        "yes" if row.initial_weights_identical else "NO",
        f"{row.result.seconds:.1f}",
    ]


def json_text(report: ParityReport) -> str:
    """The text of `parity.json`: figures over all layouts first, then every loss and norm of each layout."""
    gradients = [row.largest_gradient_difference for row in report.rows]
    table = {
        "steps": report.steps,
        "max_relative_loss_difference": max((max(row.loss_differences) for row in report.rows), default=None),
        "max_relative_grad_norm_difference": max((max(row.grad_norm_differences) for row in report.rows), default=None),
        "max_relative_gradient_difference": _finite(largest(gradients)) if gradients else None,
        "initial_weights_identical": all(row.initial_weights_identical for row in report.rows) if report.rows else None,
        "passed": not report.failures,
        "failures": report.failures,
        "precision": report.precision,
        "tolerance": report.tolerances.loss,
        "norm_tolerance": report.tolerances.grad_norm,
        "gradient_tolerance": report.tolerances.gradient,
        "yardstick_spread": report.yardstick_spread,
        "reference": _as_table(report, report.reference[0]) if report.reference else None,
        "yardsticks": [_as_table(report, row) for row in report.yardsticks],
        "layouts": [_as_table(report, row) for row in report.rows],
        "resumes": [{"name": row.name, **asdict(row)} for row in report.resumes],
        "skipped": [asdict(skipped) for skipped in report.skipped],
    }
    return json.dumps(table, indent=2) + "\n"


def _as_table(report: ParityReport, row: Row) -> dict[str, Any]:
    return {
        "layout": row.result.name,
        "world_size": row.choice.world_size,
        "micro_batch_size": row.choice.micro_batch_size,
        "max_relative_loss_difference": max(row.loss_differences),
        "times_yardstick_spread": report.times_spread(row),
        "max_relative_grad_norm_difference": max(row.grad_norm_differences),
        "max_relative_gradient_difference": _finite(row.largest_gradient_difference),
        "relative_grad_norm_difference_at_step_1": row.grad_norm_differences[0],
        "initial_weights": row.result.initial_weights,
        "initial_weights_identical": row.initial_weights_identical,
        "seconds": row.result.seconds,
        "parallel": asdict(row.choice.parallel),
        "losses": row.result.losses,
        "grad_norms": row.result.grad_norms,
        "gradient_differences": {name: _finite(value) for name, value in row.gradient_differences.items()},
        "gradients": row.result.gradients,
        "later_losses": row.result.later_losses,
    }


def _finite(value: float) -> float | None:
    """The value, or None for infinity and NaN, which JSON lacks."""
    return value if math.isfinite(value) else None
