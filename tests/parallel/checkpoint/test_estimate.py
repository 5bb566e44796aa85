"""Estimates before the first save, in one process."""

import socket
from pathlib import Path
from typing import Any

import torch

from gpt.training.config import Retention
from parallel.checkpoint.background import BackgroundSaver, BackgroundWriter
from parallel.checkpoint.estimate import estimate_local, estimate_shared
from parallel.checkpoint.plan import make_rank_plan


def test_an_estimate_has_the_size_of_the_save_and_leaves_nothing(tmp_path: Path, cases: Any) -> None:
    tensors, state = cases.some_tensors(1.0), {"value": 1}
    writer = BackgroundWriter(torch.device("cpu"))
    for make_plan in (None, make_rank_plan):
        directory = tmp_path / f"{make_plan}"
        directory.mkdir()
        saver = BackgroundSaver(lambda: tensors, writer, **({} if make_plan is None else {"make_plan": make_plan}))
        estimate = estimate_shared if make_plan is None else estimate_local
        found = estimate(saver, directory, state=state, step=1)
        assert list(directory.iterdir()) == []
        assert (found.write_s is None) == (make_plan is make_rank_plan)
        assert found.where == (str(directory) if make_plan is None else f"{socket.gethostname()}:{directory}")
        saver.start(directory, step=1, state=state, keep=Retention(1))
        (result,) = saver.finished(wait=True)
        assert result.error is None
        assert found.size_bytes == result.bytes < found.free_bytes
