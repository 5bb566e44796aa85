"""`triaxial moderate export` refuses runs that are no classifiers in one line."""

from launch.commands.moderate.export import run as command
from launch.main import main


def test_a_reward_run_is_refused(reward_run, tmp_path, capsys):
    assert main(["moderate", "export", str(reward_run.run), "--to", str(tmp_path / "folder")]) == 2
    assert "is no classifier run" in capsys.readouterr().err
    assert callable(command)
