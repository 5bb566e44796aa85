"""Open a checkpoint's model for a command: in this process, and who starts the ranks of a distributed one."""

import argparse
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.errors import ConfigError
from gpt.inference.model import LocalModel
from gpt.tokenizer.special_tokens import own_special_tokens
from launch.config.run_arguments import (
    add_device_arguments,
    add_layout_arguments,
    add_run_arguments,
    is_first_process,
    starts_ranks,
)
from launch.runs.open_model import opened_model, preview_model, start_ranks
from parallel.checkpoint.manifest import MANIFEST

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
ADDRESS = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher has started this process."""
    for name in (*TORCHRUN, *ADDRESS, "SLURM_STEP_NUM_TASKS", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


def parsed(run: object, *words: object) -> argparse.Namespace:
    """The arguments of a command, as launch.main passes them on."""
    parser = argparse.ArgumentParser()
    add_run_arguments(parser)
    add_device_arguments(parser)
    add_layout_arguments(parser)
    args, overrides = parser.parse_known_args([str(run), "--device", "cpu", *map(str, words)])
    assert args.takes_overrides
    args.overrides, args.given = overrides, ["generate", *map(str, words)]
    return args


def test_one_process_opens_the_model_itself(made: Any) -> None:
    tokens = torch.arange(40).unsqueeze(0)
    for words, step in (([], 20), (["--step", 10], 10), (["--nproc", 1], 20)):
        args = parsed(made.directory, *words)
        assert not starts_ranks(args)
        with opened_model(args) as opened:
            assert isinstance(opened.model, LocalModel)
            assert opened.is_main
            assert opened.saved.step == step
            loaded = dict(opened.model.model.named_parameters())
            assert all(torch.equal(loaded[name], p) for name, p in made.models[step].named_parameters())
            assert torch.equal(opened.model.model(tokens), made.models[step](tokens))


def test_a_preview_reads_only_the_small_files(made: Any, tmp_path: Path) -> None:
    run = shutil.copytree(made.directory, tmp_path / "run")
    for shard in run.rglob("*.safetensors"):
        shard.write_bytes(b"")  # reading any weight would be an error
    preview = preview_model(parsed(run))
    assert preview.model_config == made.models[20].config
    assert preview.tokenizer.vocab_size == 350
    assert preview.special == own_special_tokens(preview.tokenizer)
    (run / "checkpoints" / "step-000000020" / MANIFEST).write_text("{")
    assert preview_model(parsed(run)).model_config == preview.model_config, "of the next one"


def test_ranks_are_started_only_by_a_process_without_a_launcher(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not starts_ranks(parsed(made.directory))
    assert starts_ranks(parsed(made.directory, "--nproc", 2))
    assert is_first_process()
    for name, value in {**TORCHRUN, **ADDRESS}.items():
        monkeypatch.setenv(name, value)
    assert not starts_ranks(parsed(made.directory)), "torchrun has started them"
    assert not starts_ranks(parsed(made.directory, "--nproc", 2)), "and these are the ranks that were asked for"
    assert not is_first_process()
    with pytest.raises(ConfigError, match=r"--nproc 3 is invalid: the launcher started 2 processes. Leave it out"):
        starts_ranks(parsed(made.directory, "--nproc", 3))


def test_a_number_of_processes_below_one_is_refused(made: Any) -> None:
    with pytest.raises(ConfigError, match="--nproc 0 is invalid: must be at least 1"):
        starts_ranks(parsed(made.directory, "--nproc", 0))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nproc", 2, "--parallel.tensor", 3], "does not divide the 2 processes. Start 3 processes (--nproc"),
        (
            ["--nproc", 3, "--parallel.tensor", 3],
            "parallel.tensor = 3 is invalid: must divide model.n_heads = 4. Use 2 or 4",
        ),
        (["--nproc", 5, "--parallel.pipeline", 5], "model.n_layers = 2 is invalid: does not fill 5 pipeline stages"),
        (["--nproc", 2, "--parallel.zero_stage", 3], "--parallel.zero_stage is invalid: a trained model cannot be"),
        (["--nproc", 2, "--model.n_heads", 2], "--model.n_heads is invalid: a trained model cannot be changed, except"),
        (["--nproc", 2, "--parallel.tensr", 2], "Use --parallel.tensor, --parallel.pipeline, --parallel.data, --para"),
        (["--nproc", 2, "--step", 3], "There are: 10, 20"),
    ],
)
def test_an_impossible_layout_is_refused_before_a_process_starts(made: Any, words: list[object], message: str) -> None:
    args = parsed(made.directory, *words)
    with pytest.raises(ConfigError, match=re.escape(message)):
        start_ranks(args)


def test_one_process_refuses_a_layout_of_several(made: Any, tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"does not divide the 1 process. Start 2 processes \(--nproc"),
        opened_model(parsed(made.directory, "--parallel.tensor", 2)),
    ):
        raise AssertionError("it was opened")
    with pytest.raises(ConfigError, match="neither a run directory"), opened_model(parsed(tmp_path)):
        raise AssertionError("it was opened")
