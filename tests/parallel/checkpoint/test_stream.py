"""Checkpoints that one process writes from a stream of tensors."""

from pathlib import Path

import pytest
import torch

from gpt.files.safetensors import TensorSpec
from parallel.checkpoint.handle import verify_checkpoint
from parallel.checkpoint.load import read_tensors
from parallel.checkpoint.stream import write_stream
from parallel.errors import CheckpointError

EXPECTED = {"w": TensorSpec((4, 3), torch.float32), "b": TensorSpec((3,), torch.bfloat16)}


def test_tensors_are_converted_padded_and_divided_into_files(tmp_path: Path) -> None:
    final = tmp_path / "checkpoints" / "step-000000005"
    rows = torch.arange(6.0).view(2, 3).double()
    tensors = [("w", rows), ("b", torch.ones(3))]
    write_stream(final, iter(tensors), expected=EXPECTED, state={"step": 5}, max_file_bytes=48)
    checkpoint = verify_checkpoint(final)
    assert (checkpoint.step, checkpoint.state, checkpoint.manifest.ranks) == (5, {"step": 5}, 2)
    read = dict(read_tensors(checkpoint))
    assert torch.equal(read["w"], torch.cat([rows.float(), torch.zeros(2, 3)]))
    assert torch.equal(read["b"], torch.ones(3).bfloat16())
    assert [path.name for path in final.parent.iterdir()] == [final.name]


def test_after_an_error_nothing_is_left(tmp_path: Path) -> None:
    final = tmp_path / "step-000000005"

    def broken():
        yield "w", torch.zeros(4, 3)
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        write_stream(final, broken(), expected=EXPECTED, state={})
    huge = {"w": TensorSpec((1 << 50, 3), torch.float32)}
    with pytest.raises(CheckpointError, match=r"not saved: it needs \d+ bytes"):
        write_stream(final, iter([]), expected=huge, state={})
    assert list(tmp_path.iterdir()) == []
