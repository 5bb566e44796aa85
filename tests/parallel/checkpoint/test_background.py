"""Background saves, shared and node-local, on four gloo ranks. One rank's disk fails, and finally one rank dies."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.training.config import Retention
from parallel.checkpoint.background import BackgroundSaver, BackgroundWriter
from parallel.checkpoint.folders import step_name
from parallel.checkpoint.handle import verify_checkpoint
from parallel.checkpoint.load import read_tensors


def test_four_ranks(tmp_path: Path, cases: Any) -> None:
    assert cases.run_job("background", "four", tmp_path, 4) == [0, 0, 0, -signal.SIGKILL]


@pytest.mark.gpu
def test_a_copy_to_page_locked_memory_is_whole_when_training_goes_on(tmp_path: Path) -> None:
    """The tensors change right after each save has started; the files hold the values from before."""
    weight = torch.zeros(2**22, device="cuda")
    saver = BackgroundSaver(lambda: {"model.weight": weight}, BackgroundWriter(weight.device))
    for step in range(1, 5):
        weight.fill_(step)
        saver.start(tmp_path, step=step, state={}, keep=Retention(9))
        assert saver._writer._buffer.is_pinned(), "registered with CUDA"
        weight.fill_(-1)
    assert [result.error for result in saver.finished(wait=True)] == [None] * 4
    for step in range(1, 5):
        checkpoint = verify_checkpoint(tmp_path / step_name(step))
        ((_, saved),) = read_tensors(checkpoint)
        assert (saved == step).all()
