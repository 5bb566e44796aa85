"""`triaxial prepare checksum`: write checksums, compare them, and declare changed files correct."""

import shutil

import pytest

from launch.commands.data import checksum
from launch.main import COMMANDS, main


@pytest.fixture
def pair(tiny_corpus, tmp_path):
    """The prefix of a copy of the training corpus without checksums."""
    for suffix in (".bin", ".idx"):
        shutil.copy(f"{tiny_corpus.folder / 'train'}{suffix}", f"{tmp_path / 'copy'}{suffix}")
    return tmp_path / "copy"


def test_checksums_are_written_compared_and_replaced(pair, capsys):
    assert COMMANDS["prepare checksum"][0] == checksum.__name__
    for lines in (f"wrote {pair}.sums\n", f"{pair}: whole\n"):
        assert main(["prepare", "checksum", str(pair)]) == 0
        assert capsys.readouterr().out == lines
    with open(f"{pair}.bin", "r+b") as file:
        file.write(b"\xff\xff")
    assert main(["prepare", "checksum", str(pair)]) == 1
    damaged, advice = capsys.readouterr().out.splitlines()
    assert damaged.startswith(f"{pair}.bin: bytes 0 to ")
    assert advice == f"{pair}: 1 fault. Copy the file again (or declare it correct with --replace)"
    assert main(["prepare", "checksum", str(pair), "--replace"]) == 0
    assert main(["prepare", "checksum", str(pair)]) == 0
