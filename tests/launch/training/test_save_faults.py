"""Runs whose saves fail or whose checkpoints are damaged: what they do and report. Each run is in this process.

They end bit-identical to an undisturbed run.
"""

import errno
import json
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from gpt.training import saver
from launch.main import main
from launch.processes.restarts import last_logged_step
from parallel.checkpoint import estimate as checkpoint_estimate
from parallel.checkpoint.handle import verify_checkpoint
from parallel.checkpoint.load import read_tensors

WORDS = ["--metrics.wandb", "disabled", "--run.peak_flops_per_s", "1e12", "--train.validation_tokens", "64"]
WORDS += ["--checkpoint.every_tokens", "1024", "--checkpoint.keep_last", "1"]  # 2 steps of 12
CHECKPOINT_BYTES = 540_000  # an upper bound, close


def train(tiny_corpus: Any, run: Path, *words: object) -> int:
    try:
        return main(["train", str(tiny_corpus.recipe), "--run.directory", str(run), *WORDS, *map(str, words)])
    finally:
        if dist.is_initialized():  # after an error a run leaves it
            dist.destroy_process_group()


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def test_local_saves_do_not_wait_for_shared_storage(tiny_corpus, tmp_path, monkeypatch):
    run, disk, fsync, seen = tmp_path / "run", tmp_path / "disk", os.fsync, []

    def slow(descriptor: int) -> None:
        if threading.current_thread().name == "saving step 8" and not seen:  # shared storage, slow for three steps
            ends_at = time.monotonic() + 60
            while last_logged_step(run) < 11 and time.monotonic() < ends_at:
                time.sleep(0.005)
            seen.append(last_logged_step(run))
        fsync(descriptor)

    disk.mkdir()
    monkeypatch.setattr(os, "fsync", slow)
    words = [
        "--checkpoint.every_tokens",
        4096,
        "--checkpoint.fast_directory",
        disk,
        "--checkpoint.fast_every_tokens",
        512,
    ]
    assert train(tiny_corpus, run, *words) == 0
    assert seen
    assert min(seen) >= 11
    assert [event["checkpoint_step"] for event in events(run, "checkpoint_saved")] == [8, 12]


def ended_equal(run: Path, other: Path) -> bool:
    """Whether the last checkpoints and the losses of every step are equal, bit for bit."""
    last = [dict(read_tensors(verify_checkpoint(path / "checkpoints" / "step-000000012"))) for path in (run, other)]
    assert last[0].keys() == last[1].keys()
    losses = []
    for path in (run, other):
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        losses.append({line["step"]: line["loss"] for line in lines if "loss" in line})
    assert sorted(losses[0]) == list(range(1, 13))
    return losses[0] == losses[1] and all(torch.equal(last[0][name], tensor) for name, tensor in last[1].items())


@pytest.fixture(scope="module")
def undisturbed(tiny_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert train(tiny_corpus, run, "--checkpoint.keep_last", 2) == 0
    return run


def monitors() -> list[str]:
    """The hang monitors of this process."""
    listed = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", "parallel.health.monitor"], capture_output=True, text=True
    )
    return listed.stdout.split()


def test_a_full_disk_is_reported_and_counted_and_finally_ends_the_run(
    tiny_corpus: Any, undisturbed: Path, tmp_path: Path, small_disk: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    folder = small_disk(CHECKPOINT_BYTES * 3 // 2, run / "checkpoints")  # space for one and a half
    assert train(tiny_corpus, run) == 1, "a restart may find more space"
    assert monitors() == [], "a remaining monitor would kill this process after its timeout"
    failed = events(run, "checkpoint_failed")
    for n, (step, event) in enumerate(zip((4, 6, 8), failed, strict=True), start=1):
        for part in (f"step-{step:09d}", "not enough room", "it needs", f"bytes are free in {folder}", "untouched"):
            assert part in event["text"]
        assert f"(failure {n} in a row of at most 3)" in event["text"]
    assert "not enough room" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["step-000000002"]
    verify_checkpoint(folder / "step-000000002")

    small_disk(CHECKPOINT_BYTES * 3, folder)
    assert train(tiny_corpus, run) == 0
    assert "step-000000002 (step 2)" in events(run, "resumed")[0]["text"]
    assert ended_equal(run, undisturbed)


def test_a_disk_that_is_full_at_a_resume_is_a_retryable_error(
    tiny_corpus: Any,
    tmp_path: Path,
    small_disk: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Status 1, which launchers restart, and not the status of a user's mistake: space may be freed meanwhile."""
    run, longer = tmp_path / "run", ("--train.total_tokens", 7168)
    folder = small_disk(4 * CHECKPOINT_BYTES, run / "checkpoints")
    assert train(tiny_corpus, run) == 0
    with (folder / "filler").open("wb", buffering=0) as filler:
        while shutil.disk_usage(folder).free:
            filler.write(bytes(4096))
        assert train(tiny_corpus, run, *longer) == 1
        assert f"checkpoint {folder}: No space left on device on rank 0" in capsys.readouterr().err
        filler.truncate(filler.tell() - CHECKPOINT_BYTES // 2)
        monkeypatch.setattr(checkpoint_estimate, "_TRIAL_BYTES", 4096)
        assert train(tiny_corpus, run, *longer) == 1
        assert f"are free in {folder}" in capsys.readouterr().err
    (folder / "filler").unlink()
    assert train(tiny_corpus, run, *longer) == 0


def test_a_run_continues_after_a_failed_save(tiny_corpus: Any, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(tiny_corpus, run, "--train.total_tokens", 1024) == 0  # with links alone a run would not start
    for step in (4, 6, 10):
        (run / "checkpoints" / f"step-{step:09d}").symlink_to(tmp_path)
    assert train(tiny_corpus, run, "--checkpoint.keep_last", 2) == 0
    texts = [event["text"] for event in events(run, "checkpoint_failed")]
    assert all("a symbolic link has this name" in text for text in texts)
    assert [text.partition("(failure ")[2][0] for text in texts] == ["1", "2", "1"], "in a row"
    assert ended_equal(run, undisturbed)


def test_a_damaged_checkpoint_is_skipped_and_none_whole_is_an_error(
    tiny_corpus: Any, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(undisturbed, tmp_path / "run")
    before, newest = (run / "checkpoints" / f"step-{step:09d}" for step in (10, 12))
    shard = newest / "shard-00000.safetensors"
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 8
    shard.write_bytes(damaged)
    assert train(tiny_corpus, run, "--checkpoint.keep_last", 2) == 0
    (skipped,) = events(run, "checkpoint_skipped")
    assert f"skipped the checkpoint {newest}: shard-00000.safetensors is damaged" in skipped["text"]
    assert "(step 10)" in events(run, "resumed")[0]["text"]
    assert ended_equal(run, undisturbed)

    shard.write_bytes(damaged)
    (before / "MANIFEST.json").unlink()
    capsys.readouterr()
    assert train(tiny_corpus, run) == 2
    (message,) = capsys.readouterr().err.strip().splitlines()
    for part in ("contains checkpoints, but none is whole", before.name, "MANIFEST.json is missing", newest.name):
        assert part in message


@pytest.mark.parametrize("n_failures", [1, 100])
def test_the_last_save_is_tried_again_after_an_error_of_the_disk(tiny_corpus, tmp_path, monkeypatch, n_failures):
    """Only this save stands between the run and its end. If the disk keeps failing, a launcher restarts the run."""
    run, fsync, failed = tmp_path / "run", os.fsync, []

    def fail(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.name == "shard-00000.safetensors" and "step-000000012" in path.parent.name and len(failed) < n_failures:
            failed.append(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(saver, "RETRY_PAUSE_S", 0.01)
    status = train(tiny_corpus, run, "--checkpoint.every_tokens", 6144)
    told = [event["text"] for event in events(run, "checkpoint_failed")]
    assert all("Input/output error on rank 0" in text for text in told)
    assert (status, len(told)) == ((0, 1) if n_failures == 1 else (1, 3))
    assert (run / "checkpoints/step-000000012").exists() == (n_failures == 1)


def test_a_run_whose_directory_is_deleted_ends_with_a_line(tiny_corpus, tmp_path, capsys):
    run = tmp_path / "run"

    def delete() -> None:
        while last_logged_step(run) < 3:
            time.sleep(0.005)
        run.rename(tmp_path / "moved")

    thread = threading.Thread(target=delete)
    thread.start()
    assert train(tiny_corpus, run, "--train.total_tokens", 512 * 2000) == 2
    thread.join()
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"triaxial: error: {run}/")
    assert "was deleted, moved or replaced during training, so the run ends here" in line
