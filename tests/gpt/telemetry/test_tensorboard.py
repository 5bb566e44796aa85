"""TensorBoard's own reader finds what a run recorded; a failing disk costs a warning."""

import shutil
from pathlib import Path

import pytest

from gpt.telemetry.metrics import MetricsConfig, MetricsWriter
from gpt.telemetry.tensorboard import TensorBoardRun

accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator",
    reason="tensorboard is not installed; it comes with the extra 'tensorboard'",
)
CONFIG = MetricsConfig(wandb="disabled", tensorboard=True)


def recorded(run: Path, name: str) -> list[tuple[int, float]]:
    reader = accumulator.EventAccumulator(str(run / "tensorboard"))
    reader.Reload()
    return [(event.step, event.value) for event in reader.Scalars(name)]


def write(run: Path, steps: range, *, resume_step: int | None = None) -> None:
    with MetricsWriter(CONFIG, run, run_config={}, resume_step=resume_step, interactive=False) as writer:
        for step in steps:
            writer.log(step, {"loss": float(step), "validation/web/loss": 0.5})


def test_its_reader_finds_every_value(tmp_path: Path) -> None:
    write(tmp_path, range(1, 6))
    assert recorded(tmp_path, "loss") == [(step, float(step)) for step in range(1, 6)]
    assert recorded(tmp_path, "validation/web/loss")[0] == (1, 0.5)


def test_steps_that_are_taken_again_count_once(tmp_path: Path) -> None:
    write(tmp_path, range(1, 8))
    write(tmp_path, range(5, 7), resume_step=4)
    assert [step for step, _ in recorded(tmp_path, "loss")] == [1, 2, 3, 4, 5, 6]


def test_a_rewind_hides_the_steps_after_it(tmp_path: Path) -> None:
    with MetricsWriter(CONFIG, tmp_path, run_config={}, resume_step=None, interactive=False) as writer:
        for step in (1, 2, 3, 4):
            writer.log(step, {"loss": 1.0})
        writer.rewind(2)
        writer.log(3, {"loss": 2.0})
    assert recorded(tmp_path, "loss") == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_a_failure_is_one_warning_and_the_end_of_its_files(tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "file").write_text("")
    run = TensorBoardRun(tmp_path / "file" / "tensorboard", resume_step=None, warn=told.append)
    for step in range(3):
        run.log(step, {"loss": 1.0})
    run.rewind(1)
    run.finish()
    assert len(told) == 1
    assert "cannot be written (NotADirectoryError" in told[0]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard's own thread
def test_a_folder_that_is_deleted_does_not_stop_a_run(tmp_path: Path) -> None:
    told: list[str] = []
    run = TensorBoardRun(tmp_path / "tensorboard", resume_step=None, warn=told.append)
    run.log(1, {"loss": 1.0})
    shutil.rmtree(tmp_path / "tensorboard")
    run.log(2, {"loss": 1.0})
    run.finish()
    assert len(told) <= 1
