"""The report of `triaxial parity` from given results: what fails, what the table shows, and parity.json."""

import json
from dataclasses import replace

import pytest

from launch.parity.ranks import LayoutResult
from launch.parity.report import (
    ParityReport,
    Row,
    Tolerances,
    compare,
    compare_resume,
    json_text,
    print_report,
    relative_differences,
    resume_failures,
    row_failures,
    verdict,
)
from parallel.layout.config import ParallelConfig
from parallel.planner.search import Choice, Skipped

GRADIENTS = {"embed": [1.0, 0.5, -0.5, 0.0], "head": [1.0, 1.0, 0.0, 2.0]}
REFERENCE = LayoutResult("one process", [6.0, 5.0, 4.0], [2.0, 1.0, 0.5], "aa", 1.5, GRADIENTS, [3.0, 2.0])
TOLERANCES = Tolerances(loss=1e-5, grad_norm=1e-4, gradient=1e-4)


def row(name: str, *, losses: list[float], norms: list[float], weights: str = "aa", **layout: int) -> Row:
    result = LayoutResult(name, losses, norms, weights, 2.25, GRADIENTS)
    return compare(Choice(ParallelConfig(**layout), 2), result, REFERENCE)  # type: ignore[arg-type]


def report(*rows: Row, yardsticks: list[Row] | None = None, stopped_by: str | None = None) -> ParityReport:
    return ParityReport(
        precision="fp32",
        steps=3,
        tolerances=TOLERANCES,
        reference=[row("one process", losses=REFERENCE.losses, norms=REFERENCE.grad_norms)],
        yardsticks=yardsticks or [],
        rows=list(rows),
        skipped=[Skipped("offload=true", "needs CUDA"), Skipped("tensor=2", "odd"), Skipped("data=3", "odd")],
        stopped_by=stopped_by,
    )


GOOD = row("tensor=2", losses=[6.0, 5.00002, 4.0], norms=[2.0, 1.0, 0.9], tensor=2)
BAD = row("data=2", losses=[6.0, 5.0, 4.004], norms=[2.002, 1.0, 0.5], weights="bb", data=2)


def test_differences_are_relative_to_the_reference() -> None:
    assert relative_differences([1.5, -3.0], [1.0, -2.0]) == [0.5, 0.5]
    assert relative_differences([0.0], [0.0]) == [0.0], "a loss of zero divides nothing by zero"
    with pytest.raises(ValueError, match="zip"):
        relative_differences([1.0], [1.0, 2.0])
    assert GOOD.loss_differences == pytest.approx([0, 4e-6, 0])
    assert GOOD.grad_norm_differences == pytest.approx([0, 0, 0.8])
    assert (GOOD.initial_weights_identical, BAD.initial_weights_identical) == (True, False)


def test_each_difference_above_its_tolerance_is_a_failure() -> None:
    """The gradient norm counts at step 1 only, so the large difference at step 3 of the first row is none."""
    assert row_failures(GOOD, TOLERANCES) == []
    assert row_failures(BAD, TOLERANCES) == [
        "data=2: its initial weights differ from those of one process",
        "data=2: the loss of step 3 differs by 1.0e-03, above --tolerance 1e-05",
        "data=2: the gradient norm of step 1 differs by 1.0e-03, above --norm-tolerance 0.0001",
    ]
    nan = row("nan", losses=[float("nan"), 5.0, 4.0], norms=[float("nan"), 1.0, 0.5])
    assert len(row_failures(nan, TOLERANCES)) == 2, "a loss or norm that is no number is above every tolerance"
    assert report(GOOD).failures == []
    assert report(GOOD, stopped_by="a rank died").failures == ["a rank died"]


def test_the_spread_is_the_largest_difference_between_two_splits_of_one_process() -> None:
    assert report(GOOD).yardstick_spread is None
    assert report(GOOD).times_spread(GOOD) is None
    splits = [row(f"split {d}", losses=[6.0, 5.0 + d, 4.0], norms=[2.0, 1.0, 0.5]) for d in (0.0001, -0.0001)]
    measured = report(GOOD, yardsticks=splits)
    assert measured.yardstick_spread == pytest.approx(4e-5, rel=1e-3), "between the two, not to the reference"
    assert measured.times_spread(GOOD) == pytest.approx(0.1, rel=1e-3)
    assert report(GOOD, yardsticks=[measured.reference[0]]).times_spread(GOOD) is None, "a spread of 0"


def test_the_table_has_a_line_per_layout_and_the_reasons_once(capsys: pytest.CaptureFixture[str]) -> None:
    splits = [row("split", losses=[6.0, 5.0001, 4.0], norms=[2.0, 1.0, 0.5])]
    print_report(report(GOOD, BAD, yardsticks=splits))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 layouts against one process: 3 steps in fp32")
    rows = [line.split() for line in lines if line.strip().startswith(("one process", "split", "tensor=2", "data=2"))]
    assert [cells[0] for cells in rows] == ["one", "split", "tensor=2", "data=2"]
    assert rows[2][1:] == [
        "2",
        "2",
        "6.000000",
        "4.000000",
        "2",
        "0.9",
        "4.0e-06",
        "0.2",
        "0",
        "0",
        "8.0e-01",
        "yes",
        "2.2",
    ]
    assert rows[3][-2] == "NO"
    assert any("the spread is 2.0e-05" in line and "2 splits of one process" in line for line in lines)
    assert lines[-2:] == ["skipped offload=true: needs CUDA", "skipped tensor=2; data=3: odd"]


def test_the_verdict_is_one_line() -> None:
    assert verdict(report(GOOD)) == (
        "parity: PASSED: all 1 layouts agree with one process: loss within 4.0e-06 (tolerance 1e-05), gradients of "
        f"step 1 within {GOOD.largest_gradient_difference:.1e} ({TOLERANCES.gradient:g}), same starting weights"
    )
    assert verdict(report(GOOD, BAD)) == "parity: FAILED: 1 of 2 layouts differ; 3 failures follow"
    stopped = verdict(report(GOOD, stopped_by="a rank died"))
    assert stopped == "parity: FAILED: 0 of 1 layouts differ; 1 failures follow"


def test_parity_json_has_the_figures_over_all_layouts_and_each_loss() -> None:
    found = json.loads(json_text(report(GOOD, BAD)))
    assert (found["steps"], found["precision"], found["passed"], len(found["failures"])) == (3, "fp32", False, 3)
    assert found["max_relative_loss_difference"] == pytest.approx(1e-3)
    assert found["max_relative_grad_norm_difference"] == pytest.approx(0.8)
    assert found["initial_weights_identical"] is False
    assert (found["tolerance"], found["norm_tolerance"], found["yardstick_spread"]) == (1e-5, 1e-4, None)
    first, second = found["layouts"]
    assert (first["layout"], first["world_size"], first["micro_batch_size"]) == ("tensor=2", 2, 2)
    assert (first["losses"], first["grad_norms"]) == (GOOD.result.losses, GOOD.result.grad_norms)
    assert (second["initial_weights"], second["initial_weights_identical"]) == ("bb", False)
    assert first["parallel"]["tensor"] == 2
    assert found["reference"]["losses"] == REFERENCE.losses
    assert found["skipped"][0] == {"layout": "offload=true", "reason": "needs CUDA"}


def test_without_any_result_the_report_fails_and_has_no_figures() -> None:
    found = json.loads(json_text(replace(report(stopped_by="rank 0 died"), reference=[])))
    assert (found["passed"], found["failures"], found["reference"]) == (False, ["rank 0 died"], None)
    assert found["max_relative_loss_difference"] is found["initial_weights_identical"] is None


def with_gradients(gradients: dict[str, list[float]]) -> Row:
    return compare(GOOD.choice, replace(GOOD.result, gradients=gradients), REFERENCE)


def test_a_wrong_gradient_is_a_failure_that_names_the_first_parameter() -> None:
    halved = with_gradients({"embed": [1.0, 0.5, -0.5, 0.0], "head": [0.5, 0.5, 0.0, 1.0]})
    assert row_failures(halved, TOLERANCES) == [
        "tensor=2: the gradient of head at step 1 differs by 1.0e+00, above --gradient-tolerance 0.0001"
    ]
    both = with_gradients({"head": [0.9, 1.0, 0.0, 2.0], "embed": [1.0, 0.501, -0.5, 0.0]})
    assert row_failures(both, TOLERANCES) == [
        "tensor=2: the gradient of embed at step 1 differs by 1.0e-03, above --gradient-tolerance 0.0001; 2 parameters "
        "differ, by up to 1.0e-01"
    ]
    missing = with_gradients({"head": GRADIENTS["head"]})
    assert "the gradient of embed at step 1 differs by inf" in row_failures(missing, TOLERANCES)[0]
    found = json.loads(json_text(report(missing)))
    assert found["layouts"][0]["gradient_differences"] == {"embed": None, "head": 0.0}
    assert found["max_relative_gradient_difference"] is None


def test_a_loaded_checkpoint_must_continue_the_curve(capsys: pytest.CaptureFixture[str]) -> None:
    good = compare_resume(REFERENCE, replace(GOOD.result, later_losses=[3.0, 2.00001]))
    bad = compare_resume(REFERENCE, replace(GOOD.result, later_losses=[3.0, 2.1]))
    assert resume_failures(good, TOLERANCES, steps=3) == []
    (failure,) = resume_failures(bad, TOLERANCES, steps=3)
    assert failure.startswith("one process -> tensor=2: after loading the checkpoint, the loss of step 5 differs from")
    whole = replace(report(GOOD), resumes=[good, bad])
    assert whole.failures == [failure]
    print_report(whole)
    assert "checkpoint of step 3, one process -> tensor=2: the losses of the next 5 steps differ by up to 5.0e-06" in (
        capsys.readouterr().out
    )
    assert [each["name"] for each in json.loads(json_text(whole))["resumes"]] == ["one process -> tensor=2"] * 2
