"""One rank of a layout in this process: it measures the losses that training logs for the same recipe."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from gpt.errors import ConfigError
from launch.config.run_config import RunConfig, as_dict, read_run_config
from launch.parity.ranks import LATER_STEPS, LayoutResult, train_rank
from launch.processes.environment import ClusterEnvironment
from launch.training.train_rank import run_rank

STEPS = 3


def config_of(tiny_corpus: Any, run: Path, *words: str) -> RunConfig:
    quiet = ["--metrics.wandb", "disabled", "--run.peak_flops_per_s", "1e12", "--run.deterministic", "true"]
    return read_run_config(str(tiny_corpus.recipe), ["--run.directory", str(run), *quiet, *words])


def measured(config: RunConfig, folder: Path, **more: str) -> LayoutResult:
    """The result of a layout of one rank, trained in this process."""
    folder.mkdir()
    task = {"name": "one process", "world_size": 1, "config": as_dict(config), "steps": STEPS, **more}
    (folder / "task.json").write_text(json.dumps(task))
    try:
        train_rank(0, str(folder))
    finally:
        if dist.is_initialized():  # after an error
            dist.destroy_process_group()
    return LayoutResult(**json.loads((folder / "result.json").read_text()))


def test_a_rank_measures_the_losses_and_norms_that_training_logs(tiny_corpus: Any, tmp_path: Path) -> None:
    config = config_of(tiny_corpus, tmp_path / "run", "--train.total_tokens", str(STEPS * 512))
    found = measured(config, tmp_path / "layout")
    assert not (tmp_path / "run").exists(), "it writes no run directory"
    assert run_rank(config, ClusterEnvironment(), resume=None) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "loss" in line]
    assert found.losses == [line["loss"] for line in logged]
    assert found.grad_norms == [line["gradient_norm"] for line in logged]
    assert (found.name, len(found.losses), len(found.initial_weights)) == ("one process", STEPS, 64)
    assert found.seconds > 0
    other = measured(dataclasses.replace(config, run=dataclasses.replace(config.run, seed=4)), tmp_path / "other")
    assert other.initial_weights != found.initial_weights


def test_a_loaded_checkpoint_continues_the_run_that_saved_it(tiny_corpus: Any, tmp_path: Path) -> None:
    config = config_of(tiny_corpus, tmp_path / "run")
    saver = measured(config, tmp_path / "saver", saves=str(tmp_path / "saved"))
    loader = measured(config, tmp_path / "loader", loads=str(tmp_path / "saved"))
    assert len(saver.losses) == STEPS
    assert len(saver.later_losses) == LATER_STEPS
    assert loader.later_losses == saver.later_losses, "bit for bit on the same layout and engine"
    assert (loader.losses, loader.gradients) == ([], {})
    names = list(saver.gradients)
    assert (names[0], names[-1]) == ("embed.tokens.weight", "norm.bias")
    squared = sum(digest[0] ** 2 for digest in saver.gradients.values())
    assert math.sqrt(squared) == pytest.approx(saver.grad_norms[0], rel=1e-6), "the norms add up to the global one"


def test_a_loss_that_is_no_number_is_refused_with_its_step(tiny_corpus: Any, tmp_path: Path) -> None:
    words = ["--optimizer.learning_rate", "1e30", "--schedule.warmup_tokens", "0"]
    with pytest.raises(ConfigError, match=r"step \d: the loss is nan. Lower optimizer.learning_rate"):
        measured(config_of(tiny_corpus, tmp_path / "run", *words), tmp_path / "layout")
    assert not (tmp_path / "layout" / "result.json").exists()
