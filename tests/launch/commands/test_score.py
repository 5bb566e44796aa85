"""Mistakes in the arguments of `triaxial score`. tests/launch/rewards scores a run."""

import pytest

from gpt.token_files.files import TokenFileWriter
from launch.main import main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "there is nothing to score. Give --rankings FILE or --demonstrations FILE"),
        (["--calibrate", "--rankings", "{folder}/texts"], "--calibrate needs --demonstrations FILE"),
        (["--plot", "p.svg", "--demonstrations", "{folder}/texts"], "--plot needs --rankings FILE"),
        (["--rewards", "r.jsonl", "--demonstrations", "{folder}/texts"], "--rewards needs --rankings FILE"),
        (["--rankings", "/nowhere"], "--rankings /nowhere is invalid: no such file, and no token files"),
        (["--rankings", "{folder}/texts"], "texts_marks. Prepare rankings"),
        (["--demonstrations", "{folder}/texts", "--batch-tokens", "0"], "--batch-tokens 0 is invalid"),
        (["--demonstrations", "{folder}/texts"], "{folder}/run: no such folder"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, words, message):
    with TokenFileWriter(tmp_path / "texts", vocab_size=512) as file:
        file.add_document([1, 2, 3])
    assert main(["score", str(tmp_path / "run"), *(word.format(folder=tmp_path) for word in words)]) == 2
    error = capsys.readouterr().err.strip()
    assert message.format(folder=tmp_path) in error
    assert len(error.splitlines()) == 1
