"""The value model of PPO reads its head as the model that it started from."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import triaxial
from gpt.losses.batch import Batch
from gpt.telemetry.time_ledger import TimeLedger
from launch.config.run_config import read_run_config
from launch.main import main
from launch.post_training.models import build_models, starting_state
from launch.post_training.train_ppo import prepare
from launch.processes.environment import ClusterEnvironment
from launch.training.resume import fresh_start
from launch.training.train_rank import find_run_start


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def mean_run(instruct: Any, tiny_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reward model of `instruct`, trained on with the mean of all tokens."""
    run = tmp_path_factory.mktemp("mean") / "run"
    data = f'[{{ path = "{instruct.folder}/rankings", streams = {{ marks = "{instruct.folder}/rankings_marks" }} }}]'
    words = {
        "objective.kind": "reward",
        "objective.pool": "mean",
        "run.directory": run,
        "run.start_from": instruct.folder / "rm",
        "run.peak_flops_per_s": 1e12,
        "data.sampling": "document",
        "data.train": data,
        "data.validation": [],
        "train.total_tokens": 512,
        "checkpoint.every_tokens": 1_000_000,
        "metrics.wandb": "disabled",
    }
    options = [str(word) for key, value in words.items() for word in (f"--{key}", value)]
    assert main(["train", str(tiny_corpus.recipe), *options]) == 0
    return run


def config_of(instruct: Any, run: Path, *words: str) -> Any:
    return read_run_config(str(instruct.recipe), ["--run.directory", str(run), *words])


def test_values_are_the_rewards_of_the_text_so_far(instruct: Any, mean_run: Path, tmp_path: Path) -> None:
    config = config_of(instruct, tmp_path / "run", "--objective.rewards", f'[{{ run = "{mean_run}" }}]')
    sys.path.insert(0, str(instruct.folder))  # where the reward functions are
    try:
        ready = prepare(config, ClusterEnvironment(), TimeLedger(None), resume=None)
    finally:
        sys.path.remove(str(instruct.folder))
    start = fresh_start(ready.base.config)
    models = build_models(ready.base, ready.parts, start, starting_state(ready.parts, start))
    tokens = torch.randint(0, 500, (2, 32), generator=torch.Generator().manual_seed(0))
    assert models.value is not None
    values = models.value.token_values(Batch(tokens, torch.zeros_like(tokens)))
    texts = [row[:n].tolist() for row in tokens for n in range(1, 33)]
    rewards = triaxial.load_reward(mean_run).score_tokens(texts)
    assert values.flatten().tolist() == pytest.approx(rewards, abs=1e-5)
    assert values.std() > 1e-3


def test_a_resumed_run_keeps_the_pool_of_its_start(instruct: Any, mean_run: Path, tmp_path: Path) -> None:
    """Also if the reward model was trained again with another pool; and a later run starts from such a value model."""
    words = ["--objective.rewards", f'[{{ run = "{mean_run}" }}]', "--objective.gold", "[]", "--train.total_steps", "1"]
    words += ["--objective.ptx", "[]"]
    run = tmp_path / "run"
    dist.destroy_process_group()
    try:
        assert main(["train", str(instruct.recipe), "--run.directory", str(run), *words]) == 0
    finally:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    ready = prepare(config_of(instruct, run, *words), ClusterEnvironment(), TimeLedger(None), resume=None)
    start, _ = find_run_start(ready.base)
    assert start.checkpoint is not None
    plans = {**ready.parts.plans, "value": replace(ready.parts.plans["value"], pool="last")}
    assert starting_state(replace(ready.parts, plans=plans), start).value_pool == "mean"
    later = config_of(instruct, tmp_path / "later", *words, "--objective.value_from", str(run / "value"))
    ready = prepare(later, ClusterEnvironment(), TimeLedger(None), resume=None)
    assert ready.parts.plans["value"].pool == "mean"
    other = config_of(instruct, tmp_path / "other", *words, "--objective.value_from", str(instruct.folder / "base"))
    assert prepare(other, ClusterEnvironment(), TimeLedger(None), resume=None).parts.plans["value"].pool == "last"
