"""Find the checkpoint from which a run resumes: the newest that is whole, shared or local, and of the same run.

test_resume.py has the checks that a run makes of the checkpoint before that.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.data.skipped import SkippedData
from gpt.errors import ConfigError
from gpt.health.spikes import SpikeDetector
from gpt.telemetry.time_ledger import TimeLedger
from gpt.training.config import Retention
from gpt.training.run import LoopState
from launch.config.run_config import RunConfig, read_run_config
from launch.processes.environment import ClusterEnvironment
from launch.training.local_tier import local_directory
from launch.training.resume import (
    check_no_links,
    check_run_directory,
    check_same_run,
    find_start,
    fresh_start,
    loop_state,
)
from launch.training.train_rank import prepare
from parallel.checkpoint.folders import list_checkpoints
from parallel.checkpoint.local_tier import mark, rank_directory
from parallel.checkpoint.manifest import MANIFEST
from parallel.checkpoint.save import save_checkpoint

LAYOUT: dict[str, object] = {"tensor": 1}
SAMPLES = 8  # per step of the tiny recipe


@pytest.fixture
def config(tiny_corpus: Any, tmp_path: Path) -> RunConfig:
    return config_of(tiny_corpus, tmp_path)


def config_of(tiny_corpus: Any, tmp_path: Path, *words: str) -> RunConfig:
    return read_run_config(str(tiny_corpus.recipe), ["--run.directory", str(tmp_path / "run"), *words])


def state_of(config: RunConfig) -> dict[str, object]:
    """The state that a run of this recipe puts into each checkpoint, without its progress."""
    fresh = replace(config, run=replace(config.run, directory=config.run.directory / "none"))  # with no checkpoint
    state = prepare(fresh, ClusterEnvironment(), TimeLedger(None), resume=None).saved_state
    config_table: Any = state["config"]
    config_table["run"]["directory"] = str(config.run.directory)
    return {**state, "run_id": "this run"}


def save(directory: Path, config: RunConfig, step: int, **changes: object) -> Path:
    """Save a checkpoint with real state and a small tensor."""
    loop = LoopState(step, SkippedData.stated(config.data.skip), SpikeDetector(config.spike), skipped_steps=3)
    progress = {
        "step": step,
        "samples_seen": SAMPLES * step,
        "tokens_seen": 512 * step,
        "loop": loop.to_json(),
        "optimizer_steps": step,
    }
    state = {**state_of(config), **progress, **changes}
    tensors = {"model.weight": torch.full((64,), float(step))}
    directory.parent.mkdir(parents=True, exist_ok=True)
    return save_checkpoint(directory, step=step, tensors=tensors, state=state, keep=Retention(9))


def damage(checkpoint: Path) -> None:
    """Flip a bit of a tensor."""
    shard = checkpoint / "shard-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)


def test_a_run_resumes_from_its_newest_whole_checkpoint(config: RunConfig) -> None:
    folder = config.run.directory / "checkpoints"
    paths = {step: save(folder, config, step) for step in (4, 8, 12)}
    for found, skipped in ((12, []), (8, [12]), (4, [12, 8])):
        for resume in (None, True):
            start = find_start(config, state_of(config), resume=resume)
            assert start.checkpoint is not None
            assert (start.step, start.checkpoint.path) == (found, paths[found])
            assert start.state.skipped_steps == 3, "the loop's state is the checkpoint's"
            kinds, texts = zip(*start.events, strict=True)
            assert kinds == (*["checkpoint_skipped"] * len(skipped), "resumed")
            assert all(
                f"skipped the checkpoint {paths[step]}: " in text for step, text in zip(skipped, texts, strict=False)
            )
            assert texts[-1] == f"resumed from {paths[found]} (step {found})"
            assert start.without_checkpoint().checkpoint is None
        damage(paths[found])
    with pytest.raises(ConfigError, match=rf"{folder} contains checkpoints, but none is whole: .*step-000000012"):
        find_start(config, state_of(config), resume=None)
    with pytest.raises(ConfigError, match=r"--resume, but .* contains no whole checkpoint: .*step-000000004"):
        find_start(config, state_of(config), resume=True)


def test_without_a_checkpoint_a_run_starts_from_its_first_sample(tiny_corpus: Any, tmp_path: Path) -> None:
    config = config_of(tiny_corpus, tmp_path, "--data.skip", "[[8, 16]]")
    for resume in (None, False):
        check_run_directory(config, state_of(config), resume=resume)
        start = find_start(config, state_of(config), resume=resume)
        assert (start.step, start.checkpoint, start.weights, start.events) == (0, None, None, [])
        assert start.state.skipped.spans == ((8, 16),)
    with pytest.raises(ConfigError, match=r"--resume, but .* contains no checkpoint"):
        check_run_directory(config, state_of(config), resume=True)


def test_a_new_run_may_take_the_weights_of_another(tiny_corpus: Any, config: RunConfig, tmp_path: Path) -> None:
    path = save(config.run.directory / "checkpoints", config, 8)
    other = read_run_config(
        str(tiny_corpus.recipe),
        ["--run.directory", str(tmp_path / "other"), "--run.start_from", str(config.run.directory)],
    )
    start = fresh_start(other)
    assert start.weights is not None
    assert (start.step, start.checkpoint, start.weights.path) == (0, None, path)
    assert start.events == [("started_from", f"weights of {path}")]
    assert start.without_checkpoint().weights is None


def test_the_newer_of_a_shared_and_a_local_checkpoint_is_taken(tiny_corpus: Any, tmp_path: Path) -> None:
    """A local checkpoint of another run or layout is skipped; local ones after the start are deleted."""
    (tmp_path / "disk").mkdir()
    disk = ["--checkpoint.fast_directory", str(tmp_path / "disk"), "--checkpoint.fast_every_tokens", "512"]
    config = config_of(tiny_corpus, tmp_path, *disk)
    tier = local_directory(config)
    assert tier is not None
    mine = rank_directory(tier)
    facts = mark({}, save_id="s", layout=LAYOUT)
    save(config.run.directory / "checkpoints", config, 8)
    for step in (6, 10):
        save(mine, config, step, **facts)
    save(mine, config, 11, **mark({}, save_id="s", layout={"tensor": 2}))
    save(mine, config, 12, **facts, run_id="an earlier run at this path")
    state = state_of(config)
    start = find_start(config, state, resume=None, layout=LAYOUT)
    assert start.checkpoint is not None
    assert (start.step, start.checkpoint.path.parent) == (10, mine)
    assert [kind for kind, _ in start.events] == ["checkpoint_skipped"] * 2 + ["resumed"]
    assert [path.name for path in list_checkpoints(mine)] == ["step-000000010", "step-000000006"]
    damage(mine / "step-000000010")
    assert find_start(config, state, resume=None, layout=LAYOUT).step == 8, "the shared one is newer than step 6"
    save(config.run.directory / "checkpoints", config, 14)
    assert find_start(config, state, resume=None, layout=LAYOUT).step == 14


RESUME_THREE_TIMES = """
import json, pathlib, sys, time
from launch.config.run_config import read_run_config
from launch.training.resume import find_start
from gpt.errors import ConfigError
time.sleep = lambda _: None
config, state = read_run_config(sys.argv[2], sys.argv[4:]), json.loads(sys.argv[3])
for _ in range(3):
    try:
        print(find_start(config, state, resume=None, layout={"tensor": 1}).step)
    except ConfigError as error:
        print(error.exit_status, error)
        pathlib.Path(sys.argv[1]).rename(config.run.directory / "checkpoints")
"""


@pytest.mark.skipif(shutil.which("strace") is None and not os.environ.get("CI"), reason="needs strace")
def test_a_fault_of_the_local_disk_that_passes_deletes_nothing(tiny_corpus: Any, tmp_path: Path) -> None:
    """With errors of the kernel. The first two starts cannot read the local checkpoint. Without a shared one, the run
    does not start over; with one, it is taken."""
    (tmp_path / "disk").mkdir()
    words = ["--run.directory", str(tmp_path / "run"), "--checkpoint.fast_directory", str(tmp_path / "disk")]
    words += ["--checkpoint.fast_every_tokens", "512"]
    config = config_of(tiny_corpus, tmp_path, *words)
    config.run.directory.mkdir()
    tier = local_directory(config)
    assert tier is not None
    newest = save(rank_directory(tier), config, 12, **mark({}, save_id="s", layout=LAYOUT))
    save(tmp_path / "away", config, 8)
    command = [sys.executable, "-c", RESUME_THREE_TIMES, str(tmp_path / "away"), str(tiny_corpus.recipe)]
    command += [json.dumps(state_of(config)), *words]
    fault = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-P", str(newest / "shard-00000.safetensors")]
    fault += ["-e", "trace=read", "-e", "inject=read:error=EIO:when=1..8"]  # each of two starts tries four times
    done = subprocess.run([*fault, *command], capture_output=True, text=True, check=False)
    refused = f"1 checkpoint {tier}: it cannot be read, and there is no other checkpoint: skipped step 12 of {tier}: "
    refused += "shard-00000.safetensors cannot be read: Input/output error"
    assert done.stdout.splitlines() == [refused, "8", "12"], done.stderr


def test_no_resume_is_refused_while_there_is_a_checkpoint(config: RunConfig) -> None:
    path = save(config.run.directory / "checkpoints", config, 4)
    for check in (check_run_directory, find_start):
        with pytest.raises(ConfigError, match=f"--no-resume, but .* contains the checkpoint {path.name}. Use another"):
            check(config, state_of(config), resume=False)  # type: ignore[operator]


def test_another_tokenizer_is_refused(config: RunConfig) -> None:
    now = state_of(config)
    with pytest.raises(ConfigError, match=f"another tokenizer in {config.data.tokenizer}"):
        check_same_run(Path("step-000000004"), {**now, "tokenizer": "other"}, now)


def test_other_settings_may_change_and_are_logged(tiny_corpus: Any, config: RunConfig, tmp_path: Path) -> None:
    """The micro-batch is no property of the run's data either. A range that is not read yet can be left out."""
    save(config.run.directory / "checkpoints", config, 4)
    words = ["--optimizer.learning_rate", "1e-3", "--batch.micro_batch_size", "1", "--data.skip", "[[100, 110]]"]
    changed = config_of(tiny_corpus, tmp_path, *words)
    check_run_directory(changed, state_of(changed), resume=None)
    start = find_start(changed, state_of(changed), resume=None)
    logged = [text for kind, text in start.events if kind == "setting_changed"]
    assert "changed since the checkpoint: optimizer.learning_rate: 0.003 -> 0.001" in logged
    assert "changed since the checkpoint: batch.micro_batch_size: 2 -> 1" in logged
    assert "data.skip: positions 100 to 109 are left out from now on" in logged
    assert start.state.skipped.spans == ((100, 110),)


def test_the_loops_state_keeps_the_ranges_that_rewinds_left_out(config: RunConfig) -> None:
    rewound = SkippedData().with_range(16, 24, why="the loss spike at step 3")
    loop = LoopState(4, rewound, SpikeDetector(config.spike), rewinds=1)
    state, messages = loop_state(config, {"step": 4, "samples_seen": 32, "loop": loop.to_json()})
    assert (state.step, state.rewinds, state.skipped.spans, messages) == (4, 1, ((16, 24),), [])


def test_a_damaged_header_is_left_to_the_search(config: RunConfig) -> None:
    """The early check cannot say anything about it; the search then falls back to the older checkpoint."""
    folder = config.run.directory / "checkpoints"
    save(folder, config, 4)
    (save(folder, config, 8) / MANIFEST).write_text("{")
    check_run_directory(config, state_of(config), resume=True)
    assert find_start(config, state_of(config), resume=True).step == 4


def test_a_link_in_place_of_the_newest_checkpoint_is_named(config: RunConfig, tmp_path: Path) -> None:
    folder = config.run.directory / "checkpoints"
    save(folder, config, 4)
    newest = save(folder, config, 8)
    newest.rename(tmp_path / "moved")
    newest.symlink_to(tmp_path / "moved")
    (folder / "step-000000012").touch()
    start = find_start(config, state_of(config), resume=None)
    assert start.step == 4
    assert start.events[:2] == [
        ("checkpoint_skipped", f"skipped the checkpoint {folder}/step-000000012: it is no folder"),
        ("checkpoint_skipped", f"skipped the checkpoint {newest}: it is a symbolic link, which is not followed"),
    ]


def test_a_run_whose_checkpoints_are_all_links_does_not_start_over(config: RunConfig, tmp_path: Path) -> None:
    path = save(config.run.directory / "checkpoints", config, 8)
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    reason = f"none is whole: skipped the checkpoint {path}: it is a symbolic link, which is not followed"
    for resume in (None, False):
        check_run_directory(config, state_of(config), resume=resume)
        with pytest.raises(ConfigError, match=reason):
            find_start(config, state_of(config), resume=resume)
    check_run_directory(config, state_of(config), resume=True)
    with pytest.raises(ConfigError, match=r"--resume, but .* contains no whole checkpoint: .* symbolic link"):
        find_start(config, state_of(config), resume=True)


def test_an_imported_model_is_no_run_to_resume(config: RunConfig) -> None:
    folder = config.run.directory / "checkpoints"
    state: dict[str, object] = {"config": {"model": {}, "data": {}}, "step": 0, "tokens_seen": 0, "imported": {}}
    config.run.directory.mkdir()
    save_checkpoint(folder, step=0, tensors={"w": torch.zeros(1)}, state=state, keep=Retention(1))
    with pytest.raises(
        ConfigError, match=r"no state of a training run \(data, .* missing\).*run.start_from = '"
    ) as one:
        check_run_directory(config, state_of(config), resume=None)
    with pytest.raises(ConfigError) as other:
        find_start(config, state_of(config), resume=None)
    assert str(one.value) == str(other.value)


def test_the_folder_of_checkpoints_may_not_be_a_link_to_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    check_no_links(run)  # a new run has no directory
    run.mkdir()
    (run / "checkpoints").symlink_to(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="checkpoints is a symbolic link"):
        check_no_links(run)
