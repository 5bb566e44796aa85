"""What a run records: metrics.jsonl and the offline W&B run."""

import json
import math
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt.errors import ConfigError
from gpt.telemetry.metrics import MetricsConfig, MetricsWriter, supersede_after

REPOSITORY = Path(__file__).parents[3]
OFF = MetricsConfig(wandb="disabled")


def read_lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def write_steps(directory: Path, steps: range, *, resume_step: int | None = None, take: int = 1) -> None:
    with MetricsWriter(OFF, directory, run_config={}, resume_step=resume_step, interactive=False) as writer:
        for step in steps:
            writer.log(step, {"loss": 10.0 / step, "take": take})


# --- metrics.jsonl


def test_one_json_object_a_line_written_at_once(tmp_path: Path) -> None:
    with MetricsWriter(OFF, tmp_path / "new" / "run", run_config={}, resume_step=None, interactive=False) as writer:
        for step in (1, 2):
            writer.log(step, {"loss": 4.0 / step, "tokens_seen": 10**15 * step})
            assert len(read_lines(writer.path)) == step  # nothing waits in a buffer
        writer.log(2, {"validation/dev/loss": 2.5})
    assert read_lines(tmp_path / "new" / "run" / "metrics.jsonl") == [
        {"step": 1, "loss": 4.0, "tokens_seen": 10**15},
        {"step": 2, "loss": 2.0, "tokens_seen": 2 * 10**15},
        {"step": 2, "validation/dev/loss": 2.5},
    ]


def test_a_line_of_a_thousand_values_shows_the_first_and_says_where_the_rest_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with MetricsWriter(OFF, tmp_path, run_config={}, resume_step=None, interactive=False) as writer:
        writer.log(7, {f"epochs/{i}": i / 8 for i in range(1000)})
    assert len(read_lines(tmp_path / "metrics.jsonl")[0]) == 1001
    shown = capsys.readouterr().out.split("  ")
    assert shown[-13:] == [*(f"epochs/{i} {i / 8:.5g}" for i in range(12)), "and 988 more, in metrics.jsonl\n"]


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


def test_resume_leaves_each_step_once_and_keeps_the_superseded(tmp_path: Path) -> None:
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


def test_resume_at_the_last_step_rewrites_nothing(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 4))
    inode = (tmp_path / "metrics.jsonl").stat().st_ino
    write_steps(tmp_path, range(4, 6), resume_step=3)
    assert (tmp_path / "metrics.jsonl").stat().st_ino == inode
    assert not (tmp_path / "metrics.superseded.jsonl").exists()
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_a_run_from_the_start_sets_an_older_run_aside(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 4))
    write_steps(tmp_path, range(1, 3), take=2)
    assert [line["take"] for line in read_lines(tmp_path / "metrics.jsonl")] == [2, 2]
    assert [line["step"] for line in read_lines(tmp_path / "metrics.superseded.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize("tail", [b'{"step": 2, "lo', b'{"step": 2}', b"\x00\x00\x00\n", b"[1]\n", b'{"stp": 2}\n'])
def test_a_line_cut_short_by_a_crash_is_moved_out(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + tail)
    supersede_after(path, step=5)
    assert path.read_bytes() == b'{"step": 1}\n'
    assert (tmp_path / "metrics.superseded.jsonl").read_bytes() == tail.rstrip(b"\n") + b"\n"


def test_a_disk_that_is_full_is_told_in_one_line(tmp_path: Path, python: Any) -> None:
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


# --- Weights & Biases: the real client

WANDB_RUN = """
import sys
from pathlib import Path
from gpt.telemetry.metrics import MetricsConfig, MetricsWriter
directory, mode, first, last, resume = sys.argv[1:]
config = MetricsConfig(wandb=mode, wandb_project="tests", wandb_name="a name")
run_config = {"model": {"n_layers": 2}}
with MetricsWriter(config, Path(directory), run_config=run_config, resume_step=int(resume) or None) as writer:
    for step in range(int(first), int(last) + 1):
        writer.log(step, {"loss": 8.0 / step, "gradient_norm": float("nan")})
"""

# No key of whoever runs the tests may be found, and nothing outside the test's folder may be written.
NO_ACCOUNT = {"WANDB_API_KEY": "", "NETRC": "/nonexistent", "WANDB_BASE_URL": "http://127.0.0.1:9"}


def isolated(tmp_path: Path) -> dict[str, str]:
    return {**NO_ACCOUNT, "HOME": str(tmp_path / "home")}


def wandb_records(path: Path) -> Iterator[object]:
    """The records of a .wandb file: LevelDB's log format, blocks of 32 KiB, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, offset, payload = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while offset < len(data):
        left_in_block = 32768 - offset % 32768
        if left_in_block < 7:
            offset += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, offset)
        payload += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(payload)
            payload = b""
            yield record


def history(path: Path) -> list[dict[str, object]]:
    rows = []
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "history":  # type: ignore[attr-defined]
            items = record.history.item  # type: ignore[attr-defined]
            rows.append({(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in items})
    return rows


def test_offline_run_holds_every_row_resumes_under_its_id_and_can_be_synced(tmp_path: Path, python: Any) -> None:
    run = tmp_path / "run"
    for first, last, resume in [(1, 5, 0), (4, 6, 3)]:
        out = python(WANDB_RUN, run, "offline", first, last, resume, environment=isolated(tmp_path))
        assert [line.split()[:2] for line in out.splitlines()] == [["step", f"{s}"] for s in range(first, last + 1)]
    run_id = (run / "wandb_run_id").read_text().strip()
    files = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    assert [path.name for path in files] == [f"run-{run_id}.wandb"] * 2
    rows = [[(row["step"], row["loss"]) for row in history(path)] for path in files]
    assert rows == [[(s, 8 / s) for s in range(1, 6)], [(s, 8 / s) for s in range(4, 7)]]
    header = next(r.run for r in wandb_records(files[0]) if r.WhichOneof("record_type") == "run")  # type: ignore[attr-defined]
    assert (header.run_id, header.project, header.display_name) == (run_id, "tests", "a name")
    assert {item.key: json.loads(item.value_json) for item in header.config.update}["model"] == {"n_layers": 2}
    command = [str(Path(sys.executable).with_name("wandb")), "sync", "--dry-run", *(str(f.parent) for f in files)]
    found = subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=True, env={**os.environ, **isolated(tmp_path)}
    )
    assert "Would sync 2 run(s)" in found.stdout + found.stderr
    assert sorted(p.name for p in run.iterdir()) == [
        "metrics.jsonl",
        "metrics.superseded.jsonl",
        "wandb",
        "wandb_run_id",
    ]


def test_online_without_an_account_asks_nothing_and_records_offline(tmp_path: Path, on_terminal: Any) -> None:
    """On a terminal, where the client would ask for a key."""
    text = on_terminal(WANDB_RUN, tmp_path / "run", "online", 1, 3, 0, environment=isolated(tmp_path))
    assert text.count("no API key is configured; run 'wandb login'") == 1
    assert "recording offline" in text
    (file,) = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
    assert [row["step"] for row in history(file)] == [1, 2, 3]


def test_a_client_that_cannot_start_is_told_once_and_the_run_goes_on(tmp_path: Path, python: Any) -> None:
    (tmp_path / "wandb").write_text("a file where the client wants its folder")
    out = python(WANDB_RUN, tmp_path, "offline", 1, 4, 0, environment=isolated(tmp_path))
    assert out.count("Weights & Biases failed") == 1
    assert out.index("Weights & Biases failed") < out.index("step")
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 4
    run_id = (tmp_path / "wandb_run_id").read_text()
    python(WANDB_RUN, tmp_path, "offline", 1, 1, 0, environment=isolated(tmp_path))
    assert (tmp_path / "wandb_run_id").read_text() != run_id  # a run from the start is a new run there, too


def test_a_client_killed_in_the_middle_does_not_stop_the_run(tmp_path: Path, python: Any) -> None:
    code = """
import os, signal, sys, time
from pathlib import Path
from gpt.telemetry.metrics import MetricsConfig, MetricsWriter

def children():
    pids = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]
    return [p for p in pids if f"PPid:\\t{os.getpid()}\\n" in Path(f"/proc/{p}/status").read_text()]

with MetricsWriter(MetricsConfig(), Path(sys.argv[1]), run_config={}, resume_step=None) as writer:
    writer.log(1, {"loss": 1.0})
    service = children()
    assert service, "the client has no service process"
    for pid in service:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    for step in range(2, 6):
        writer.log(step, {"loss": 1.0})
        time.sleep(0.1)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("finds the client's service process in /proc")
    out = python(code, tmp_path, environment=isolated(tmp_path))
    assert out.count("Weights & Biases failed") == 1
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 5
    assert len(re.findall(r"^step", out, flags=re.M)) == 5
