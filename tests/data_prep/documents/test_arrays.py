"""Write and read arrays of numbers."""

import numpy as np
import pytest

from data_prep.documents.arrays import read_array, write_array


def test_arrays_of_records_survive_and_equal_those_of_numpy(tmp_path):
    rows = np.zeros(3, np.dtype([("a", "<u4"), ("b", "?")]))
    rows["a"] = [3, 1, 2]
    write_array(tmp_path / "a.npy", rows)
    assert (read_array(tmp_path / "a.npy") == rows).all()
    assert (np.load(tmp_path / "a.npy") == rows).all()


def test_pickled_objects_are_an_error(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        read_array(tmp_path / "a.npy")
