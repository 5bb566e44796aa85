"""`triaxial moderate heads` fits linear heads only; tests/launch/moderation/test_refit.py has the fit itself."""

from launch.main import main


def test_a_run_with_mlps_is_refused_with_one_line(classifier_run, capsys):
    command = ["moderate", "heads", str(classifier_run.run), "--labels", str(classifier_run.folder / "train.jsonl")]
    assert main([*command, "--device", "cpu"]) != 0
    error = capsys.readouterr().err
    assert "objective.head = 'mlp' of" in error
    assert len(error.strip().splitlines()) == 1


def test_a_penalty_is_a_number_or_auto(classifier_run, capsys):
    command = ["moderate", "heads", str(classifier_run.run), "--labels", "labels.jsonl", "--l2", "much"]
    assert main(command) != 0
    assert "'much' is invalid: must be a number above 0, or auto" in capsys.readouterr().err
