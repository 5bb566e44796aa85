"""`triaxial data audit` on a run of one process; tests/launch/training/test_spike_rewind.py audits runs on ranks."""

import json

import pytest

from launch.commands.arguments import data_audit
from launch.main import COMMANDS, main


@pytest.fixture(scope="module")
def trained(tiny_corpus, tmp_path_factory):
    """The directory of a run of four steps, which skips the first two positions."""
    directory = tmp_path_factory.mktemp("audit") / "run"
    words = ["train", str(tiny_corpus.recipe), "--run.directory", str(directory), "--metrics.wandb", "disabled"]
    words += ["--train.total_tokens", "2048", "--run.peak_flops_per_s", "1e12", "--data.skip", "[[0, 2]]"]
    assert main(words) == 0
    return directory


def test_each_sequence_of_a_step_is_named(trained, tiny_corpus, capsys):
    assert COMMANDS["data audit"][0] == data_audit.__name__
    capsys.readouterr()
    assert main(["data", "audit", str(trained), "--step", "1", "--json"]) == 0
    sources = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [source["position"] for source in sources] == list(range(2, 10)), "512 tokens are 8 sequences of 64"
    for source in sources:
        assert sum(part["n_tokens"] for part in source["documents"]) == 65
        assert {part["file"] for part in source["documents"]} == {f"{tiny_corpus.folder}/train.bin"}


def test_a_skipped_position_has_no_step(trained, capsys):
    capsys.readouterr()
    assert main(["data", "audit", str(trained), "--positions", "1-2"]) == 0
    shown = capsys.readouterr().out
    assert "skipped: positions 0 to 1 (data.skip)" in shown
    assert any(line.split()[:1] == ["skipped"] for line in shown.splitlines())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--step", "0"], "--step 0 is invalid: must be a whole number of at least 1"),
        (["--steps", "3-1"], "--steps 3-1 is invalid: must be A-B, whole numbers with 1 <= A <= B"),
        (["--step", "5"], "step 5 is after the end of the run: train.total_tokens = 2,048 are 4 steps"),
        (["--step", "1", "--rank", "1/3"], "step 1 has 8 sequences, not divisible by 3 data ranks"),
    ],
)
def test_a_mistake_is_one_line(trained, capsys, words, message):
    assert main(["data", "audit", str(trained), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
