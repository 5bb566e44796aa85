"""Candidates survive their file, and hashes are uniform and keyed by the seed."""

import json

import numpy as np
import pytest

from gpt.errors import ConfigError
from gpt.moderation.loop.candidates import (
    candidates_json,
    candidates_of,
    hashes_of,
    read_candidates,
    smallest,
    uniform,
)


def test_survive_json():
    ids = ["b", "a", "c"]
    found = smallest([candidates_of(np.array([0.3, 0.3, 0.1]), hashes_of(ids, 5), ids, ["x", "y", ""])], 2)
    again = read_candidates(json.loads(json.dumps(candidates_json(found))), where="file")
    for name in ("keys", "hashes", "ids", "groups"):
        np.testing.assert_array_equal(getattr(found, name), getattr(again, name))


@pytest.mark.parametrize(
    "change",
    [
        {"keys": [float("nan")]},
        {"hashes": ["xyz"]},
        {"ids": [1]},
        {"ids": []},
        {"groups": None},
        {"hashes": ["1" * 20]},
    ],
)
def test_refuses_damaged_ones(change):
    value = {"keys": [0.5], "hashes": ["0f"], "ids": ["a"], "groups": [""], **change}
    with pytest.raises(ConfigError, match="state is damaged: remove it"):
        read_candidates(value, where="state")


def test_hashes_are_uniform_and_depend_on_the_seed():
    ids = [str(i) for i in range(4_000)]
    first, second = uniform(hashes_of(ids, 0)), uniform(hashes_of(ids, 1))
    assert 0 < first.min() < first.max() < 1
    assert first.mean() == pytest.approx(0.5, abs=0.02)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.06
