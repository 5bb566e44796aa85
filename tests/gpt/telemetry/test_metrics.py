"""metrics.jsonl: one line per record, each step once after a resume, and errors in one line."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt.errors import ConfigError
from gpt.telemetry.metrics import MetricsConfig, MetricsWriter, supersede_after

OFF = MetricsConfig(wandb="disabled")


def read_lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def write_steps(directory: Path, steps: range, *, resume_step: int | None = None, take: int = 1) -> None:
    with MetricsWriter(OFF, directory, run_config={}, resume_step=resume_step, interactive=False) as writer:
        for step in steps:
            writer.log(step, {"loss": 10.0 / step, "take": take})


def test_each_record_is_one_line_of_json_and_written_at_once(tmp_path: Path) -> None:
    with MetricsWriter(OFF, tmp_path / "new" / "run", run_config={}, resume_step=None, interactive=False) as writer:
        for step in (1, 2):
            writer.log(step, {"loss": 4.0 / step, "tokens_seen": 10**15 * step})
            assert len(read_lines(writer.path)) == step  # no buffering
        writer.log(2, {"validation/dev/loss": 2.5})
    assert read_lines(tmp_path / "new" / "run" / "metrics.jsonl") == [
        {"step": 1, "loss": 4.0, "tokens_seen": 10**15},
        {"step": 2, "loss": 2.0, "tokens_seen": 2 * 10**15},
        {"step": 2, "validation/dev/loss": 2.5},
    ]


def test_the_console_shows_the_first_of_a_thousand_values_and_names_the_file_with_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with MetricsWriter(OFF, tmp_path, run_config={}, resume_step=None, interactive=False) as writer:
        writer.log(7, {f"other/{i}": i / 8 for i in range(1000)})
    assert len(read_lines(tmp_path / "metrics.jsonl")[0]) == 1001
    shown = capsys.readouterr().out.split("  ")
    assert shown[-13:] == [*(f"other/{i} {i / 8:.5g}" for i in range(12)), "and 988 more, in metrics.jsonl\n"]


def test_numbers_of_numpy_and_torch_and_non_finite_ones_are_valid_json(tmp_path: Path) -> None:
    values = {
        "a": np.float32(0.5),
        "b": np.int64(7),
        "c": torch.tensor(0.25),
        "d": math.nan,
        "e": math.inf,
        "f": -math.inf,
    }
    with MetricsWriter(OFF, tmp_path, run_config={}, resume_step=None, interactive=False) as writer:
        writer.log(1, values)  # type: ignore[arg-type]
    assert read_lines(tmp_path / "metrics.jsonl") == [
        {"step": 1, "a": 0.5, "b": 7, "c": 0.25, "d": "nan", "e": "inf", "f": "-inf"}
    ]


def test_after_a_resume_each_step_is_there_once_and_superseded_lines_are_kept(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 8))
    write_steps(tmp_path, range(5, 10), resume_step=4, take=2)
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["take"]) for line in lines] == [(s, 1 if s <= 4 else 2) for s in range(1, 10)]
    moved = read_lines(tmp_path / "metrics.superseded.jsonl")
    assert [(line["step"], line["take"]) for line in moved] == [(5, 1), (6, 1), (7, 1)]
    write_steps(tmp_path, range(8, 10), resume_step=7, take=3)
    moved = read_lines(tmp_path / "metrics.superseded.jsonl")
    assert [(line["step"], line["take"]) for line in moved] == [(5, 1), (6, 1), (7, 1), (8, 2), (9, 2)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "metrics.superseded.jsonl"]


def test_a_resume_at_the_last_step_rewrites_nothing(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 4))
    inode = (tmp_path / "metrics.jsonl").stat().st_ino
    write_steps(tmp_path, range(4, 6), resume_step=3)
    assert (tmp_path / "metrics.jsonl").stat().st_ino == inode
    assert not (tmp_path / "metrics.superseded.jsonl").exists()
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_a_new_run_moves_the_lines_of_an_older_run_away(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 4))
    write_steps(tmp_path, range(1, 3), take=2)
    assert [line["take"] for line in read_lines(tmp_path / "metrics.jsonl")] == [2, 2]
    assert [line["step"] for line in read_lines(tmp_path / "metrics.superseded.jsonl")] == [1, 2, 3]


def test_damaged_lines_at_a_resume_are_reported(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 8))
    path = tmp_path / "metrics.jsonl"
    data = bytearray(path.read_bytes())
    data[data.index(b'"step": 3')] ^= 0x40  # one flipped bit
    path.write_bytes(data[:-5])  # and a kill
    write_steps(tmp_path, range(5, 7), resume_step=4, take=2)
    assert [line["step"] for line in read_lines(path)] == [1, 2, 4, 5, 6]
    (event,) = read_lines(tmp_path / "events.jsonl")
    assert (event["kind"], event["step"]) == ("warning", 4)
    assert event["text"] == (
        f"1 damaged line of {path} cannot be read; moved to metrics.superseded.jsonl. Check that disk"
    )


def test_a_file_that_cannot_be_written_gives_a_one_line_error(tmp_path: Path, python: Any) -> None:
    code = """
import resource, signal, sys
from pathlib import Path
from gpt.errors import ConfigError
from gpt.telemetry.metrics import MetricsConfig, MetricsWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # writing past 1,000 bytes fails as on a full disk
config = MetricsConfig(wandb="disabled")
try:
    with MetricsWriter(config, Path(sys.argv[1]), run_config={}, resume_step=None, interactive=False) as writer:
        for step in range(100):
            writer.log(step, {"loss": 1.0})
except ConfigError as error:
    print("refused:", error)
"""
    last = python(code, tmp_path).splitlines()[-1]
    assert last.startswith(f"refused: {tmp_path}/metrics.jsonl: cannot be written (")
    supersede_after(tmp_path / "metrics.jsonl", step=10**9)
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")][:3] == [0, 1, 2]


def test_a_run_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with (
        pytest.raises(ConfigError, match=r"run/metrics\.jsonl: cannot be written"),
        MetricsWriter(OFF, tmp_path / "run", run_config={}, resume_step=None),
    ):
        pass


def test_configuration() -> None:
    assert MetricsConfig().wandb == "offline"
    with pytest.raises(ConfigError, match="log_every_steps = 0"):
        MetricsConfig(log_every_steps=0)
    with pytest.raises(ConfigError, match="wandb_project is empty"):
        MetricsConfig(wandb_project="")
    writer = MetricsWriter(MetricsConfig(log_every_steps=10), Path("x"), run_config={}, resume_step=None)
    assert [step for step in range(1, 31) if writer.due(step)] == [10, 20, 30]
