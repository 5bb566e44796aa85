"""Token ids by position: no memory is mapped or kept, and a file that becomes shorter is an error and not a crash."""

import struct
from pathlib import Path

import numpy as np
import pytest

from gpt.errors import ConfigError
from gpt.token_files.bin_reader import StoredTokens
from gpt.token_files.files import TokenFile


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the figures come from Linux's /proc")
def test_opening_and_reading_map_no_memory(tmp_path):
    """16 documents of 2**31 - 1 tokens: 64 GiB in a sparse file. A mapped file would show in both figures."""
    lengths = np.full(16, 2**31 - 1, dtype="<i4")
    starts = np.concatenate(([0], np.cumsum(lengths[:-1], dtype="<i8") * 2)).astype("<i8")
    header = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 8, 16, 17)
    (tmp_path / "long.idx").write_bytes(
        header + lengths.tobytes() + starts.tobytes() + np.arange(17, dtype="<i8").tobytes()
    )
    with (tmp_path / "long.bin").open("wb") as file:
        file.truncate(2 * int(lengths.sum(dtype=np.int64)))
    before = process_memory()
    long = TokenFile(tmp_path / "long")
    for sample in range(2000):
        start = sample * (long.n_tokens // 2000)
        long.announce(start, start + 100)
        assert not long.read(start, start + 100).any()
    after = process_memory()
    assert after["VmSize"] - before["VmSize"] < 2**30
    assert after["VmPTE"] - before["VmPTE"] < 2**20  # 2,000 touches of a mapped file: 8 MB


def process_memory() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmSize", "VmPTE"))}


def test_a_file_that_is_cut_while_it_is_open_is_an_error_and_not_a_crash(tmp_path):
    path, ids = tmp_path / "a.bin", np.arange(40, dtype="<u2")
    path.write_bytes(ids.tobytes())
    tokens = StoredTokens(path, ids.dtype)
    assert tokens.read(3, 40).tolist() == ids[3:].tolist()
    with path.open("r+b") as file:
        file.truncate(20)
    assert tokens.read(0, 10).tolist() == ids[:10].tolist()
    with pytest.raises(ConfigError, match=r"a\.bin became shorter after it was opened: it ends before byte 21"):
        tokens.read(5, 15)
    with pytest.raises(ConfigError, match="cannot be opened: No such file"):
        StoredTokens(tmp_path / "gone.bin", ids.dtype)
