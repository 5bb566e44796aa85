"""Weights & Biases with its real client: offline runs, a client that fails, and one that is killed."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt.telemetry.wandb import ID_FILE

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

CRASH = """
import sys
from pathlib import Path
from gpt.telemetry.metrics import MetricsConfig, MetricsWriter
sys.excepthook = lambda kind, error, trace: print("told once, without", len(str(error)), "letters")
with MetricsWriter(MetricsConfig(wandb="offline"), Path(sys.argv[1]), run_config={}, resume_step=None) as writer:
    raise ValueError("a secret")
"""

SAMPLES = """
import sys
from pathlib import Path
from gpt.telemetry.metrics import MetricsConfig, MetricsWriter
with MetricsWriter(MetricsConfig(wandb="offline"), Path(sys.argv[1]), run_config={}, resume_step=None) as writer:
    writer.samples(7, ["One", "A"], ["One two", "A boat"])
"""

# The client must not find an API key of the person who runs the tests, nor write outside of the test's folder.
NO_ACCOUNT = {"WANDB_API_KEY": "", "NETRC": "/nonexistent", "WANDB_BASE_URL": "http://127.0.0.1:9"}


def isolated(tmp_path: Path) -> dict[str, str]:
    return {**NO_ACCOUNT, "HOME": str(tmp_path / "home")}


def stored_id(run: Path) -> str:
    return (run / ID_FILE).read_text().split()[0]


def wandb_records(path: Path) -> Iterator[object]:
    """Yield the records of a .wandb file: LevelDB's log format in blocks of 32 KiB, after a header of 7 bytes."""
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
        if kind in (1, 4):  # complete, or the last part
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


def test_an_offline_run_has_every_row_resumes_under_its_id_and_can_be_synced(tmp_path: Path, python: Any) -> None:
    run = tmp_path / "run"
    for first, last, resume in [(1, 5, 0), (4, 6, 3)]:
        out = python(WANDB_RUN, run, "offline", first, last, resume, environment=isolated(tmp_path))
        assert [line.split()[:2] for line in out.splitlines()] == [["step", f"{s}"] for s in range(first, last + 1)]
    run_id = stored_id(run)
    copy = shutil.copytree(run, tmp_path / "copy")
    out = python(WANDB_RUN, copy, "offline", 4, 4, 3, environment=isolated(tmp_path))
    assert out.splitlines()[0] == (
        f"{copy} is a copy of {run}: it records as a new Weights & Biases run, {stored_id(copy)}, and not as {run_id}"
    )
    assert stored_id(copy) != run_id
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
        ID_FILE,
    ]


def test_sampled_texts_are_values_and_leave_no_file(tmp_path: Path, python: Any) -> None:
    python(SAMPLES, tmp_path / "run", environment=isolated(tmp_path))
    (file,) = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
    (row,) = history(file)
    assert (row["step"], row["sample/1"], row["sample/2"]) == (7, "One two", "A boat")
    assert not list((tmp_path / "run").rglob("media"))


def test_online_without_an_account_does_not_prompt_and_records_offline(tmp_path: Path, on_terminal: Any) -> None:
    """On a terminal, where the client would prompt for a key."""
    text = on_terminal(WANDB_RUN, tmp_path / "run", "online", 1, 3, 0, environment=isolated(tmp_path))
    assert text.count("no API key is configured. Run 'wandb login'") == 1
    assert "recording offline" in text
    (file,) = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
    assert [row["step"] for row in history(file)] == [1, 2, 3]


def test_a_client_that_cannot_start_is_reported_once_and_the_run_continues(tmp_path: Path, python: Any) -> None:
    (tmp_path / "wandb").write_text("a file where the client wants its folder")
    out = python(WANDB_RUN, tmp_path, "offline", 1, 4, 0, environment=isolated(tmp_path))
    assert out.count("Weights & Biases failed") == 1
    assert out.index("Weights & Biases failed") < out.index("step")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
    run_id = stored_id(tmp_path)
    python(WANDB_RUN, tmp_path, "offline", 1, 1, 0, environment=isolated(tmp_path))
    assert stored_id(tmp_path) != run_id  # a new run is a new run at W&B too


def test_a_client_killed_in_the_middle_does_not_stop_the_run(tmp_path: Path, python: Any) -> None:
    code = """
import os, signal, sys, time
from pathlib import Path
from gpt.telemetry.metrics import MetricsConfig, MetricsWriter

def children():
    return [int(pid) for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()]

with MetricsWriter(MetricsConfig(), Path(sys.argv[1]), run_config={}, resume_step=None) as writer:
    writer.log(1, {"loss": 1.0})
    while not (service := children()):  # the kernel may miss a child that is just starting
        time.sleep(0.1)
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
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5
    assert len(re.findall(r"^step", out, flags=re.M)) == 5


def test_a_client_whose_process_is_stopped_delays_the_run_for_a_limited_time_and_is_named(
    tmp_path: Path, python: Any
) -> None:
    code = """
import os, signal, sys, time
from pathlib import Path
from gpt.telemetry.wandb import WandbRun, WandbSettings

def children():
    return [int(pid) for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()]

settings = WandbSettings(Path(sys.argv[1]), "tests", "", "a name", False, False, "kept", patience_s=1.0)
run = WandbRun(settings, run_config={}, warn=print)
run.log(1, {"loss": 1.0})
while not (found := children()):  # the kernel may miss a child that is just starting
    time.sleep(0.1)
for pid in found:
    os.kill(pid, signal.SIGSTOP)
for step in range(2, 20_000):  # far more than a socket holds
    run.log(step, {"loss": 1.0, "text": "x" * 100})
run.finish(exit_code=0)
assert all("State:\\tZ" in Path(f"/proc/{pid}/status").read_text() for pid in children())
print("the run ended")
"""
    if not Path("/proc/self/task").exists():
        pytest.skip("finds the client's service process in /proc")
    out = python(code, tmp_path, environment=isolated(tmp_path)).splitlines()
    failed = [line for line in out if line.startswith("Weights & Biases failed")]
    assert len(failed) == 1
    assert re.search(r"no answer within .* s of its process \d+ \(wandb-core, stopped\), which is ended", failed[0])
    assert out[-1] == "the run ended"


def test_the_client_does_not_print_an_error_itself(tmp_path):
    """The process's own hook leaves secrets out; the client would print them before it."""
    command = [sys.executable, "-c", CRASH, str(tmp_path / "run")]
    environment = {**os.environ, **isolated(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stdout == "told once, without 8 letters\n"
    assert not done.stderr


def test_a_killed_process_leaves_no_temporary_folder_of_the_client(tmp_path):
    """The client makes two at its import, and removes them only at a normal end."""
    system = tmp_path / "tmp"
    system.mkdir()
    environment = {**os.environ, **isolated(tmp_path), "TMPDIR": str(system)}
    for number, code in enumerate((WANDB_RUN + "    import os; os.kill(os.getpid(), 9)\n", WANDB_RUN)):
        resume = (1, 2, 0) if number == 0 else (3, 4, 2)
        command = [sys.executable, "-c", code, str(tmp_path / "run"), "offline", *map(str, resume)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=False)
        assert done.returncode == (0 if number else -9), done.stderr
        left = [path.name for path in system.iterdir() if "wandb" in path.name or path.name.startswith("triaxial_")]
        assert not left
    assert not list((tmp_path / "run" / "wandb").glob("triaxial_*"))
