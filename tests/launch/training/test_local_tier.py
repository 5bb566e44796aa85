"""A run with a local tier resumes from it after a fault, or from a shared checkpoint if the local ones are damaged, and
ends bit-identical to an undisturbed run. Each run is in this process."""

import json
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from launch.main import main
from parallel.checkpoint.folders import list_checkpoints
from parallel.checkpoint.handle import verify_checkpoint
from parallel.checkpoint.load import read_tensors
from parallel.checkpoint.local_tier import tier_directory


def train(tiny_corpus: Any, run: Path, *words: object) -> int:
    quiet = ["--metrics.wandb", "disabled", "--run.peak_flops_per_s", "1e12", "--train.validation_tokens", "64"]
    try:
        return main(["train", str(tiny_corpus.recipe), "--run.directory", str(run), *quiet, *map(str, words)])
    finally:
        for thread in threading.enumerate():  # a background save, which ends with its process otherwise
            if thread.name.startswith("saving step"):
                thread.join()
        if dist.is_initialized():  # after an error a run leaves it
            dist.destroy_process_group()


def texts(run: Path, kind: str) -> list[str]:
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [line["text"] for line in lines if line["kind"] == kind]


def final(run: Path) -> dict[str, torch.Tensor]:
    return dict(read_tensors(verify_checkpoint(run / "checkpoints" / "step-000000012")))


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], tensor) for name, tensor in right.items())


@pytest.fixture(scope="module")
def undisturbed(tiny_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert train(tiny_corpus, run) == 0
    return final(run)


def test_a_run_resumes_from_the_local_tier(tiny_corpus: Any, undisturbed: Any, tmp_path: Path) -> None:
    run, fast, blocked = tmp_path / "run", tmp_path / "fast", tmp_path / "run" / "checkpoints" / "step-000000008"
    tier = ["--checkpoint.fast_directory", fast, "--checkpoint.fast_every_tokens", 512]  # every step
    tier += ["--checkpoint.in_background", "false"]  # else a save to shared storage may replace a local one
    fast.mkdir()
    assert train(tiny_corpus, run, *tier, "--train.total_tokens", 2048) == 0
    blocked.symlink_to(tmp_path)  # the save of step 8 fails, and one failure is enough
    assert train(tiny_corpus, run, *tier, "--checkpoint.max_failures", 1) == 2
    assert [path.name for path in blocked.parent.iterdir() if path != blocked] == ["step-000000004"]
    (mine,) = fast.glob("run-*/rank-00000")
    newest, before = list_checkpoints(mine)
    steps = {path: int(path.name.removeprefix("step-")) for path in (newest, before)}
    assert tuple(steps.values()) == (7, 6), "the failure is reported in step 8"
    blocked.unlink()
    for name in ("run", "fast"):
        shutil.copytree(tmp_path / name, tmp_path / "kept" / name)

    assert train(tiny_corpus, run, *tier) == 0
    assert f"resumed from {newest} (step {steps[newest]})" in texts(run, "resumed")[-1]
    assert equal(final(run), undisturbed)
    assert list(fast.iterdir()) == [], "a finished run leaves nothing on the node"

    for damaged, step in (([newest], steps[before]), ([newest, before], 4)):
        for name in ("run", "fast"):
            shutil.rmtree(tmp_path / name)
            shutil.copytree(tmp_path / "kept" / name, tmp_path / name)
        for path in damaged:
            (path / "shard-00000.safetensors").write_bytes(b"damaged")
        assert train(tiny_corpus, run, *tier) == 0
        skipped = [text for text in texts(run, "checkpoint_skipped") if str(blocked) not in text]
        assert len(skipped) == len(damaged)
        assert all("shard-00000.safetensors has 7 bytes" in text for text in skipped)
        assert f"(step {step})" in texts(run, "resumed")[-1]
        assert equal(final(run), undisturbed)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
def test_a_tier_that_another_user_made_is_refused_and_nothing_is_written_through_it(
    tiny_corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, nobody = tmp_path / "run", 65534
    fast = Path(tempfile.mkdtemp())
    fast.chmod(0o1777)
    tier = tier_directory(fast, run)
    plant = f"mkdir {tier} && ln -s {run / 'checkpoints'} {tier}/rank-00000"
    subprocess.run(["/bin/sh", "-c", plant], user=nobody, group=nobody, extra_groups=[], check=True)
    words = ["--checkpoint.fast_directory", fast, "--checkpoint.fast_every_tokens", 512]
    assert train(tiny_corpus, run, *words) == 2
    assert capsys.readouterr().err == (
        f"triaxial: error: checkpoint.fast_directory = '{fast}' is invalid: {tier} belongs to user {nobody}, not to "
        f"you (user 0). Nothing was read from it or written to it. Use another folder.\n"
    )
    assert not (run / "checkpoints").exists()
    shutil.rmtree(fast)
