"""A checkpoint with a changed tensor takes the place of the old one: whole, verified, all else as it was."""

import shutil

import pytest
import torch

from gpt.errors import ConfigError
from launch.conversion.changed_checkpoint import place_of, publish_changed
from launch.runs.saved_run import find_checkpoint
from parallel.checkpoint.load import read_tensors


def tensors_of(checkpoint):
    return {name: tensor.clone() for name, tensor in read_tensors(checkpoint, [*checkpoint.index])}


def test_one_tensor_changes_and_the_state_gains_a_key(made, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(made.directory, run)
    directory, before, _ = find_checkpoint(run, None)
    old = tensors_of(before)
    name = next(iter(old))
    published = publish_changed(
        directory, before, lambda key, x: x * 2 if key == name else x, state={"note": {"a": 1}}, is_main=True
    )
    assert published == before.path
    _, after, _ = find_checkpoint(run, None)
    assert after.state == {**before.state, "note": {"a": 1}}
    new = tensors_of(after)
    assert list(new) == list(old)
    assert all(torch.equal(new[key], old[key] * 2 if key == name else old[key]) for key in old)
    with pytest.raises(ConfigError, match="is not in the folder of checkpoints of"):
        place_of(tmp_path, after)
