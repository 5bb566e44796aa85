"""The folders of a checkout; tests/test_wheel.py finds those of a wheel."""

from pathlib import Path

import pytest

from gpt.errors import ConfigError
from launch.shipped import shipped_folder

ROOT = Path(__file__).resolve().parents[2]


def test_the_folders_of_the_checkout_are_found():
    assert shipped_folder("docs") == ROOT / "docs"
    assert shipped_folder("slurm") == ROOT / "slurm"


def test_a_missing_folder_is_a_line():
    with pytest.raises(ConfigError, match="the folder nothing is missing from this installation"):
        shipped_folder("nothing")
