"""`triaxial moderate export` refuses runs that are no classifiers in one line."""

from launch.commands.moderate.export import run as command
from launch.main import main


def test_a_reward_run_is_refused(reward_run, tmp_path, capsys):
    assert main(["moderate", "export", str(reward_run.run), "--to", str(tmp_path / "folder")]) == 2
    assert "is no classifier run" in capsys.readouterr().err
    assert callable(command)


def test_something_must_be_written(classifier_run, capsys):
    for words, error in (([], "Give --to FOLDER or --onnx FILE.onnx"), (["--with-code"], "Give --to FOLDER")):
        assert main(["moderate", "export", str(classifier_run.run), *words]) == 2
        assert error in capsys.readouterr().err
