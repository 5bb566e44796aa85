"""Write and read `.npy` files, the arrays of numbers that stages pass on."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def write_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write a `.npy` file. Unlike numpy.save, the OSError of a full disk says that it is full."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_2_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.tobytes())


def read_array(path: Path) -> npt.NDArray[Any]:
    """Read a `.npy` file; one with pickled objects is an error."""
    return np.asarray(np.load(path, allow_pickle=False))
