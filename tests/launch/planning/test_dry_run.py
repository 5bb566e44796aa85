"""`triaxial train --dry-run` as users run it: its tables, its file, its memory for 175B parameters, and mistakes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import launch.planning.dry_run as dry_run_module
from launch.config.run_config import layout_of, read_run_config
from launch.main import main
from launch.processes.terminal import WorkProgress
from launch.training.build import build_objective, engine_settings
from parallel.planner.dry_run import micro_batches_to_run

TRIAXIAL = [sys.executable, "-m", "launch.main", "train"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
LAYOUT = (
    "--parallel.tensor",
    "2",
    "--parallel.pipeline",
    "2",
    "--ranks",
    "8",
    "--batch.micro_batch_size",
    "1",
    "--parallel.split=[1, 1]",
)


def dry_run(*words):
    command = [*TRIAXIAL, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, env=ENVIRONMENT, check=False)


def test_tables_of_each_kind_of_stage(tiny_corpus, tmp_path):
    """No file of the recipe is opened, and no run directory is created."""
    words = ("--dry-run", "--run.directory", tmp_path / "run", "--data.tokenizer", "/nowhere")
    done = dry_run(tiny_corpus.recipe, *words, *LAYOUT, "--json", tmp_path / "dry.json")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run").exists()
    lines = done.stdout.splitlines()
    assert lines[0] == "dry run of tensor 2 x pipeline 2 x data 2 = 8 ranks, 4 micro-batches a step"
    first, last = (line.split() for line in lines[2:4])
    assert (first[:3], last[:3]) == (["0", "0", "0"], ["4", "1", "1"])
    report = json.loads((tmp_path / "dry.json").read_text())
    assert report["world_size"] == 8
    assert [rank["rank"] for rank in report["ranks"]] == [0, 4]
    rank = report["ranks"][0]
    assert rank["layers"] == [0]
    assert rank["parameter_bytes"] == rank["gradient_bytes"] == 4 * rank["parameters"]
    sends = [entry for entry in rank["traffic"] if entry["kind"] == "send"]
    tied = 512 // 2 * 32 // 2 * 4
    assert sends == [{"axis": "pipeline", "kind": "send", "ranks": 2, "count": 5, "bytes": 4 * 64 // 2 * 32 * 4 + tied}]


def test_a_signal_ends_it_without_a_word_of_python():
    """No worker is left, and no warning of semaphores that nobody removed."""
    words = [*TRIAXIAL, "gpt3_175b", "--dry-run", "--ranks", "512"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stdout.readline().startswith("dry run of")
        time.sleep(1)  # its workers start now
        process.send_signal(signal.SIGTERM)
        said, warned = process.communicate(timeout=60)  # ends only when the workers have closed the pipes too
    assert (process.returncode, said, warned) == (128 + signal.SIGTERM, "", "")


def test_gpt3_175b_on_1024_ranks_in_little_memory(tmp_path):
    """One rank of each kind of stage, with a batch that just fills the pipeline.

    The first stage holds the activations of the most micro-batches; the last one has the loss."""
    words = ("--dry-run", "--ranks", "1024", "--json", str(tmp_path / "dry.json"))
    process = subprocess.Popen(
        [*TRIAXIAL, "gpt3_175b", *words, "--batch.global_batch_tokens", str(16 * 8 * 2048)],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    marks = high_water_marks(process)
    assert process.returncode == 0
    assert len(marks) > 3, "a process for each rank, and their parents"
    assert sum(marks.values()) < 4 * 2**20, "KiB, even if all of them had their maximum at the same time"
    first, middle, rank = json.loads((tmp_path / "dry.json").read_text())["ranks"]
    assert [first["stages"], middle["stages"], rank["stages"]] == [[0], [1], [15]]
    assert 80 * 2**30 > first["peak_bytes"] > middle["peak_bytes"] > rank["peak_bytes"]
    in_flight = 16 * 6 * (28 / 8 + 4) * 2048 * 12288  # micro-batches, blocks in each, bytes a number of d_model
    assert 1 < first["peak_activation_bytes"] / in_flight < 1.05, "all 16 micro-batches and little else"
    assert rank["layers"] == list(range(90, 96))
    d, rows, kept = 12288, 50304 // 8, 8 * 8  # whole on each tensor rank, so sharded over data ranks only
    matrices = 6 * (12 * d * d + 7 * d) + 50304 * d
    assert rank["parameters"] == matrices // kept + (6 * 6 * d + 2 * d) // 8
    gathers = next(e for e in rank["traffic"] if (e["axis"], e["kind"]) == ("tensor", "all-gather"))
    assert gathers["count"] == 16 * (6 * 4 + 1)
    assert gathers["bytes"] == gathers["count"] * 2048 * d * 2
    assert rows * d * 4 < rank["peak_bytes"]


def high_water_marks(process):
    """Wait for a process that leads a session; returns the peak memory of each process of the session, KiB by id."""
    marks = {}
    while process.poll() is None:
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                session = int(stat.read_text().rpartition(")")[2].split()[3])
                status = (stat.parent / "status").read_text() if session == process.pid else ""
            except (FileNotFoundError, ProcessLookupError):  # the process has ended
                continue
            if found := re.search(r"VmHWM:\s+(\d+) kB", status):
                marks[stat.parent.name] = int(found[1])
        time.sleep(0.1)
    return marks


def test_steps_in_processes_of_their_own_give_one_report_and_are_counted(tiny_corpus, monkeypatch):
    """Two shorter steps of each of two kinds of ranks, with a pass through a stage as the unit of progress."""
    words = ["--parallel.pipeline", "2", "--batch.micro_batch_size", "1", "--batch.global_batch_tokens", str(64 * 402)]
    words += ["--train.total_tokens", "1e6"]
    config = read_run_config(str(tiny_corpus.recipe), words)
    settings = engine_settings(config, layout_of(config, 2))
    assert micro_batches_to_run(settings) == (3, 4)
    done = list[float]()
    monkeypatch.setattr(WorkProgress, "advance", lambda self, amount=1.0: done.append(amount))
    reports = dry_run_module.measure(settings, build_objective(config), [0, 1], data=config.data)
    assert [(r.rank, r.micro_batches, r.micro_batches_run) for r in reports] == [(0, 402, (3, 4)), (1, 402, (3, 4))]
    assert sum(done) == 2 * (3 + 4)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--dry-run", "--ranks", "8", "--rank", "8"], ["--rank 8 is invalid", "from 0 to 7"]),
        (["--dry-run", "--rank", "-1"], ["--rank -1"]),
        (["--dry-run", "--ranks", "0"], ["--ranks 0", "at least 1"]),
        (
            ["--dry-run", "--ranks", "3", "--parallel.tensor", "2"],
            ["--ranks 3 is invalid", "parallel.tensor 2", "Use --ranks 2 or 4"],
        ),
        (["--dry-run", "--resume"], ["--dry-run", "--resume"]),
        (["--dry-run", "--no-resume"], ["--dry-run", "--no-resume"]),
        (["--dry-run", "--nproc", "2"], ["--nproc", "--ranks 2"]),
        (["--dry-run", "--json", "/nowhere/dry.json"], ["--json /nowhere/dry.json"]),
        (["--rank", "1"], ["--rank", "--dry-run"]),
        (["--json", "x.json"], ["--json", "--dry-run"]),
    ],
)
def test_mistakes_end_in_one_line(tiny_corpus, capsys, words, parts):
    assert main(["train", str(tiny_corpus.recipe), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(part in line for part in parts), line


def test_torchrun_is_refused(tiny_corpus, capsys, monkeypatch):
    ranks = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    assert main(["train", str(tiny_corpus.recipe), "--dry-run"]) == 2
    assert "--ranks 2" in capsys.readouterr().err
