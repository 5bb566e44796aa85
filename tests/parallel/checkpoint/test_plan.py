"""Plans of one process: exact sizes before anything is written, and tensors that cannot be saved."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.errors import ConfigError
from gpt.training.config import Retention
from parallel.agreement import ALONE
from parallel.checkpoint.manifest import encode_state
from parallel.checkpoint.plan import make_plan, make_rank_plan
from parallel.checkpoint.save import Save, save_checkpoint


def test_the_size_of_a_save_is_known_to_the_byte(tmp_path: Path, cases: Any) -> None:
    tensors, state = cases.some_tensors(1.0), {"value": 1}
    plan = make_plan(tensors, None, path=tmp_path)
    assert plan.writers == range(1)
    assert make_rank_plan(tensors, None, path=tmp_path) == plan
    planned = Save(tmp_path / "step-000000001", plan, encode_state(state), Retention(1))
    path = save_checkpoint(tmp_path, step=1, tensors=tensors, state=state, keep=Retention(1))
    assert planned.size_bytes == sum(file.stat().st_size for file in path.iterdir())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"": torch.zeros(1)}, "cannot be the name of a saved tensor"),
        ({"__metadata__": torch.zeros(1)}, "cannot be the name of a saved tensor"),
        ({"w": torch.zeros(2, dtype=torch.complex64)}, "'w' is torch.complex64; checkpoints hold F64"),
        ({"w": torch.zeros(2, device="meta")}, "'w' has no dense storage"),
        ({"w": torch.zeros(2, 2).to_sparse()}, "'w' has no dense storage"),
    ],
)
def test_tensors_that_cannot_be_saved_are_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(tensors, ALONE, path=tmp_path)
