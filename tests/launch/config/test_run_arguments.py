"""The arguments that commands share name what the code behind them knows."""

import argparse

import pytest
import torch

from gpt.errors import ConfigError
from launch.config.run_arguments import (
    BEST,
    add_classifier_arguments,
    add_layout_arguments,
    add_run_arguments,
    find_checkpoint_folder,
    starts_ranks,
)
from launch.conversion.sources import EXPORT_DTYPES
from launch.runs.saved_run import DTYPES


def parsed(*words):
    parser = argparse.ArgumentParser()
    add_run_arguments(parser)
    add_classifier_arguments(parser)
    return parser.parse_args(["RUN", *words])


def test_names_of_dtypes_are_those_of_torch():
    assert {"float32": torch.float32, "bfloat16": torch.bfloat16} == DTYPES
    assert {**DTYPES, "float16": torch.float16} == EXPORT_DTYPES


def test_a_step_is_a_number_or_the_best():
    assert parsed("--step", "best").step == BEST
    assert parsed("--step", "12").step == 12
    assert parsed().step is None


def test_the_layout_may_be_left_out():
    parser = argparse.ArgumentParser()
    add_classifier_arguments(parser, layouts=False)
    assert "nproc" not in parser.parse_args([])
    add_layout_arguments(parser)
    assert "--parallel.pipeline" in str(parser.epilog)


def test_ranks_are_started_for_more_than_one_process():
    assert not starts_ranks(parsed())
    assert not starts_ranks(parsed("--nproc", "1"))
    assert starts_ranks(parsed("--nproc", "2"))
    with pytest.raises(ConfigError, match="--nproc 0 is invalid: must be at least 1"):
        starts_ranks(parsed("--nproc", "0"))


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is neither a run directory"):
        find_checkpoint_folder(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert find_checkpoint_folder(tmp_path) == (tmp_path / "checkpoints", None)
