"""TensorBoard's own reader finds what a run recorded; a failing disk costs a warning."""

import shutil
from contextlib import suppress
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


def test_its_reader_finds_the_sampled_texts(tmp_path: Path) -> None:
    with MetricsWriter(CONFIG, tmp_path, run_config={}, resume_step=None, interactive=False) as writer:
        for step in (1, 2):
            writer.samples(step, ["One", "A"], [f"One # {step}\ntwo", "A lone \ud800"])
    reader = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    assert reader.PluginTagToContent("text").keys() == {"sample/1", "sample/2"}
    found = [(event.step, event.tensor_proto.string_val[0]) for event in reader.Tensors("sample/1")]
    assert found == [(1, b"    One # 1\n    two\n"), (2, b"    One # 2\n    two\n")]
    assert reader.Tensors("sample/2")[0].tensor_proto.string_val[0] == b"    A lone \\ud800\n"


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


def test_after_its_folder_is_deleted_a_run_records_on_in_a_new_one(tmp_path: Path) -> None:
    """TensorBoard's own writer would print a traceback of its thread, and record nothing more."""
    told: list[str] = []
    run = TensorBoardRun(tmp_path / "tensorboard", resume_step=None, warn=told.append)
    run.log(1, {"loss": 1.0})
    for step in (2, 3):
        shutil.rmtree(tmp_path / "tensorboard")
        run.log(step, {"loss": 1.0})
    run.log(4, {"loss": 1.0})
    assert recorded(tmp_path, "loss") == [(3, 1.0), (4, 1.0)], "also before the end"
    run.finish()
    assert len(told) == 1
    assert "were deleted during the run; it continues in new ones" in told[0]


def test_a_file_that_is_replaced_by_its_copy_stays_readable(tmp_path: Path) -> None:
    """As after a restored backup. A newline between two records would end the reader there."""
    told: list[str] = []
    run = TensorBoardRun(tmp_path / "tensorboard", resume_step=None, warn=told.append)
    run.log(1, {"loss": 1.0})
    (path,) = (tmp_path / "tensorboard").iterdir()
    shutil.copyfile(path, tmp_path / "copy")
    (tmp_path / "copy").replace(path)
    run.log(2, {"loss": 2.0})
    run.finish()
    assert recorded(tmp_path, "loss") == [(1, 1.0), (2, 2.0)]


def test_a_deleted_run_directory_is_not_made_again(tmp_path: Path) -> None:
    told: list[str] = []
    run = TensorBoardRun(tmp_path / "run" / "tensorboard", resume_step=None, warn=told.append)
    run.log(1, {"loss": 1.0})
    run.finish()
    assert not (tmp_path / "run").exists()
    assert len(told) == 1


def test_values_wait_while_the_disk_is_full(tmp_path: Path, small_disk) -> None:
    disk = small_disk(1 << 20)
    told: list[str] = []
    run = TensorBoardRun(disk / "tensorboard", resume_step=None, warn=told.append)
    fill = disk / "fill"
    with suppress(OSError), open(fill, "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    for step in range(1, 200):
        run.log(step, {"loss": 1.0})
    fill.unlink()
    run.log(200, {"loss": 1.0})
    run.finish()
    assert [step for step, _ in recorded(disk, "loss")] == list(range(1, 201))
    assert told == []
