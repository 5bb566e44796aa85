"""Wrong arguments of `triaxial moderate score` end with one line."""

from launch.commands.moderate.score import run as command
from launch.main import main


def test_wrong_arguments_are_refused_in_one_line(classifier_run, tmp_path, capsys):
    run, source = classifier_run.run, classifier_run.folder / "validation.jsonl"
    for words, error in (
        ((source, "--output", tmp_path / "a.txt"), "the ending must be one of .jsonl, .jsonl.gz, .parquet"),
        ((tmp_path / "none.jsonl", "--output", tmp_path / "a.jsonl"), "no file matches"),
        ((source, "--output", tmp_path / "a.jsonl", "--batch-tokens", 0), "--batch-tokens 0 is invalid"),
    ):
        assert main(["moderate", "score", str(run), *map(str, words)]) == 2
        assert error in capsys.readouterr().err
    assert callable(command)
