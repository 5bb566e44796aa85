"""What goes wrong with files is told in a line."""

import pytest

from data_prep.execution.files import disk_errors
from gpt.errors import ConfigError


def test_a_full_disk_is_one_line(small_disk):
    """A real full file system: a tmpfs of 256 KiB."""
    path = small_disk(256 << 10) / "big"
    with (
        pytest.raises(ConfigError, match=r"big: the disk is full \([\d,]+ bytes free in ") as caught,
        disk_errors(path),
    ):
        path.write_bytes(bytes(1 << 20))
    assert "\n" not in str(caught.value)
