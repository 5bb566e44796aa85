"""Records of a run on a disk that is full for a while, and on one that stays full."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from gpt.errors import ConfigError, DiskFull
from gpt.files.line_file import MAX_WAITING_BYTES, LineFile
from gpt.telemetry.event_log import append_event
from gpt.telemetry.metrics import MetricsConfig, MetricsWriter

OFF = MetricsConfig(wandb="disabled")


@pytest.fixture
def disk(small_disk):
    return small_disk(64 << 10)


def fill(disk):
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            return filler


def steps(path):
    """Return the steps in whole lines."""
    lines = path.read_bytes().splitlines(keepends=True)
    return [json.loads(line)["step"] for line in lines if line.endswith(b"\n")]


def test_records_wait_while_the_disk_is_full_and_are_complete_and_in_order_later(disk, capsys):
    with MetricsWriter(OFF, disk / "run", run_config={}, resume_step=None, interactive=False) as writer:
        writer.log(0, {"loss": 1.0})
        filler = fill(disk)
        for step in range(1, 300):
            writer.log(step, {"loss": 1.0})
        writer.event("checkpoint_failed", step=299, text="there is not enough room")
        for _ in range(300):
            writer.event("warning", step=299, text="more than the page has room for")
        writer.append("samples.jsonl", [{"step": 299, "text": "x" * 5000}, {"step": 299, "text": "é"}])
        assert steps(disk / "run/metrics.jsonl")[-1:] != [299], "the disk must be full here"
        filler.unlink()
        writer.log(300, {"loss": 1.0})
        assert steps(disk / "run/metrics.jsonl") == list(range(301))
    samples = (disk / "run/samples.jsonl").read_text(encoding="utf-8")
    assert [len(json.loads(line)["text"]) for line in samples.splitlines()] == [5000, 1]
    events = [json.loads(line)["text"] for line in (disk / "run/events.jsonl").read_text().splitlines()]
    assert events == ["there is not enough room"] + 300 * ["more than the page has room for"]
    messages = [line for line in capsys.readouterr().out.splitlines() if "/run: " in line]
    assert [line.partition("/run: ")[2] for line in messages] == [
        "no space left on device; records wait in memory, and training continues",
        "the disk takes records again; none is lost",
    ]


def test_on_a_disk_that_stays_full_the_run_ends_and_can_be_started_again(disk, capsys):
    assert DiskFull.exit_status == 1, "a launcher starts it again, after a pause"

    def run():
        with MetricsWriter(OFF, disk / "run", run_config={}, resume_step=None, interactive=False) as writer:
            fill(disk)
            for step in range(100):
                writer.log(step, {f"loss of {'x' * (MAX_WAITING_BYTES // 50)}": 1.0})

    words = r"metrics\.jsonl: cannot be written \(No space left on device; \d+ bytes are free\)"
    with pytest.raises(DiskFull, match=words):
        run()
    assert "records that waited in memory are lost" in capsys.readouterr().out


def test_a_waiting_line_is_written_whole(disk):
    (disk / "x").write_bytes(b"x" * 4089 + b"\n")  # a line would pass the end of the page
    file, filler = LineFile(disk / "x"), fill(disk)
    file.add(b"y" * 20 + b"\n")
    assert file.is_waiting
    filler.unlink()
    file.add(b"z\n")
    assert not file.is_waiting
    file.close()
    assert (disk / "x").read_bytes()[4090:] == b"y" * 20 + b"\nz\n"


def test_a_line_that_a_killed_process_cut_short_damages_no_other(tmp_path):
    (tmp_path / "x").write_bytes(b"whole\nhal")
    file = LineFile(tmp_path / "x")
    file.add(b"next\n")
    file.add(b"last\n")
    file.close()
    assert (tmp_path / "x").read_bytes() == b"whole\nhal\nnext\nlast\n"


def test_an_event_on_a_full_disk_is_an_error_and_damages_no_other(disk):
    path = disk / "events.jsonl"
    path.write_bytes(b"x" * 4089 + b"\n")  # room for a part of it, to the end of the page
    filler = fill(disk)
    with pytest.raises(OSError, match="No space left"):
        append_event(path, "hang", step=3, text="rank 1 stands still", fields={})
    filler.unlink()
    append_event(path, "hang", step=4, text="rank 1 stands still", fields={})
    lines = path.read_bytes().splitlines()
    assert len(lines) == 3
    assert json.loads(lines[2])["step"] == 4


@pytest.mark.skipif(shutil.which("strace") is None and not os.environ.get("CI"), reason="needs strace")
def test_lines_that_the_disk_refuses_for_a_while_are_written_later(tmp_path):
    """EIO of the kernel, in a real process, at two writes."""
    code = """
import sys
from pathlib import Path
from gpt.files.line_file import LineFile
file = LineFile(Path(sys.argv[1]))
for step in range(8):
    file.add(b'{"step": %d}\\n' % step)
    print(file.error if file.is_waiting else "written")
"""
    path = tmp_path / "metrics.jsonl"
    fault = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", path, "-e", "inject=write:error=EIO:when=3..4"]
    done = subprocess.run([*fault, sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert steps(path) == list(range(8))
    assert done.stdout.splitlines() == ["written"] * 2 + ["[Errno 5] Input/output error"] * 2 + ["written"] * 4


def train(run, change):
    with MetricsWriter(OFF, run, run_config={}, resume_step=None, interactive=False) as writer:
        writer.log(1, {"loss": 1.0})
        writer.event("warning", step=1, text="first")
        change(run)
        writer.log(2, {"loss": 1.0})
        writer.log(3, {"loss": 1.0})


def test_a_deleted_run_directory_is_noticed_at_the_next_line(tmp_path):
    for number, change in enumerate((shutil.rmtree, lambda run: run.rename(tmp_path / "moved"))):
        with pytest.raises(ConfigError, match=r"metrics\.jsonl was deleted, moved or replaced during training"):
            train(tmp_path / f"run{number}", change)


def edit(run):
    """Save metrics.jsonl as an editor does, without a newline at the end; rotate events.jsonl."""
    text = (run / "metrics.jsonl").read_bytes()
    (run / "new").write_bytes(text.rstrip())
    (run / "new").rename(run / "metrics.jsonl")
    (run / "events.jsonl").rename(run / "events.jsonl.1")


def replace(run):
    """Put a copy in the place of the run directory."""
    shutil.copytree(run, run.with_name("copy"))
    shutil.rmtree(run)
    run.with_name("copy").rename(run)


@pytest.mark.parametrize("change", [edit, replace])
def test_a_replaced_file_is_opened_again_with_one_warning(tmp_path, change):
    run = tmp_path / "run"
    train(run, change)
    assert steps(run / "metrics.jsonl") == [1, 2, 3]
    texts = [json.loads(line)["text"] for line in (run / "events.jsonl").read_text().splitlines()]
    names = [text.partition(" was replaced or deleted")[0] for text in texts if text != "first"]
    assert names == [str(run / "metrics.jsonl"), str(run / "events.jsonl")]
