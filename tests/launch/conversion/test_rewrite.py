"""`triaxial convert --to triaxial` of a run: the same tensors in few files, with or without optimizer moments."""

from pathlib import Path
from typing import Any

import torch

from gpt.training.config import Retention
from launch.main import main
from launch.runs.saved_run import load_run
from parallel.checkpoint.handle import read_checkpoint_header, verify_checkpoint
from parallel.checkpoint.load import read_tensors
from parallel.checkpoint.save import save_checkpoint


def convert(*words: object) -> int:
    return main(["convert", *map(str, words)])


def test_a_checkpoint_is_rewritten_with_or_without_moments(
    tmp_path: Path, megatron_runs: Any, tiny_corpus: Any
) -> None:
    tokenizer = tiny_corpus.folder / "topics.model"
    megatron_runs.write_random_run(tmp_path / "run", megatron_runs.GPT_LIKE, tokenizer)
    path = tmp_path / "run" / "checkpoints" / "step-000000000"
    tensors = dict(read_tensors(verify_checkpoint(path)))
    state = read_checkpoint_header(path).state
    moments = {f"optimizer.exp_avg.{name}": torch.ones_like(t) for name, t in tensors.items()}
    moments["optimizer.count"] = torch.tensor([3], dtype=torch.int64)
    save_checkpoint(
        tmp_path / "run" / "checkpoints",
        step=7,
        tensors={**tensors, **moments},
        state={**state, "step": 7},
        keep=Retention(2),
    )
    assert convert(tmp_path / "run", "--to", "triaxial", "--output", tmp_path / "whole") == 0
    found = dict(read_tensors(verify_checkpoint(tmp_path / "whole" / "checkpoints" / "step-000000007")))
    assert found.keys() == tensors.keys() | moments.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in {**tensors, **moments}.items())
    assert convert(tmp_path / "run", "--to", "triaxial", "--output", tmp_path / "slim", "--weights-only") == 0
    assert (
        dict(read_tensors(verify_checkpoint(tmp_path / "slim" / "checkpoints" / "step-000000007"))).keys()
        == tensors.keys()
    )
    assert load_run(tmp_path / "slim").saved.tokenizer.vocab_size == 512
