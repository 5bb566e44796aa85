"""`triaxial moderate calibrate`: what it writes into a run makes scores calibrated and reaches the wanted precision."""

import json

import numpy as np
import pytest
from moderation_files import SECRET, labelled_and_scored, write_lines, write_taxonomy

from gpt.moderation.measures.calibration import calibrated, read_calibrator
from gpt.moderation.measures.ranking import confusion
from launch.main import main


def command_of(tmp_path, *options, n=300):
    labels, scores, truth = labelled_and_scored(tmp_path, n=n)
    run = tmp_path / "run"
    run.mkdir(exist_ok=True)
    command = ["moderate", "calibrate", str(run), "--labels", str(labels), "--scores", str(scores)]
    return [*command, "--taxonomy", str(write_taxonomy(tmp_path)), *options], truth


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
def test_writes_calibration_and_thresholds(tmp_path, capsys, kind):
    command, truth = command_of(tmp_path, "--kind", kind, "--precision", "0.8", "--json", str(tmp_path / "c.json"))
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "300 labelled texts" in out
    assert SECRET not in out
    folder = tmp_path / "run" / "moderation"
    calibration = json.loads((folder / "calibration.json").read_text())
    thresholds = json.loads((folder / "thresholds.json").read_text())
    assert set(calibration) == set(thresholds) == {"A", "B"}
    lines = (tmp_path / "scores.jsonl").read_text().splitlines()
    scores = np.array([json.loads(line)["scores"]["A"] for line in lines])
    after = calibrated(scores, read_calibrator(calibration["A"], where="A"))
    assert confusion(truth[:, 0], after, thresholds["A"]).precision >= 0.8
    row = json.loads((tmp_path / "c.json").read_text())["categories"][0]
    assert row["threshold"]["precision"]["estimate"] >= 0.8


def test_a_category_with_few_positives_stays_as_it_is(tmp_path, capsys):
    command, truth = command_of(tmp_path)
    texts = [
        {"id": f"t{i}", "text": "boat", "labels": {"A": int(row[0]), "B": int(i < 2)}} for i, row in enumerate(truth)
    ]
    write_lines(tmp_path / "labels.jsonl", texts)
    assert main(command) == 0
    assert "B: 2 positives and 298 negatives are too few" in capsys.readouterr().out
    folder = tmp_path / "run" / "moderation"
    assert set(json.loads((folder / "calibration.json").read_text())) == {"A"}
    assert not (folder / "thresholds.json").exists()


def test_scores_that_are_calibrated_are_refused(tmp_path, capsys):
    command, _ = command_of(tmp_path, n=40)
    for calibrated_already, status in ((True, 2), (False, 0)):
        (tmp_path / "scores.summary.json").write_text(json.dumps({"calibrated": calibrated_already}))
        assert main(command) == status
        assert ("holds calibrated scores" in capsys.readouterr().err) == calibrated_already


def test_thresholds_of_an_earlier_calibration_are_named(tmp_path, capsys):
    command, _ = command_of(tmp_path)
    assert main([*command, "--precision", "0.8"]) == 0
    assert "thresholds.json" not in capsys.readouterr().out
    assert main([*command, "--kind", "isotonic"]) == 0
    assert "thresholds.json was chosen for the scores before this calibration" in capsys.readouterr().out


def test_the_scores_bring_the_taxonomy_and_parents_keep_their_maximum(tmp_path, capsys):
    """B is inside A here: whoever flags B flags A, also after calibration."""
    command, truth = command_of(tmp_path, "--precision", "0.8", "--json", str(tmp_path / "c.json"))
    taxonomy = {
        "name": "toys",
        "version": 1,
        "category": [{"id": one, "title": one, "definition": one} for one in "AB"],
    }
    taxonomy["category"][1]["parent"] = "A"
    texts = [
        {"id": f"t{i}", "text": f"boat {i}", "labels": {"A": int(row.max()), "B": int(row[1])}}
        for i, row in enumerate(truth)
    ]
    write_lines(tmp_path / "labels.jsonl", texts)
    at = command.index("--taxonomy")
    found = []
    for parents in (True, False):
        (tmp_path / "scores.summary.json").write_text(json.dumps({"taxonomy_content": taxonomy, "parents": parents}))
        assert main([*command[:at], *command[at + 2 :]]) == 0
        found.append(json.loads((tmp_path / "c.json").read_text())["categories"])
    assert found[0][0]["error_after"] != found[1][0]["error_after"]  # A, whose scores rise to those of B
    assert found[0][1] == found[1][1]
    assert "note: measure with other texts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["--precision", "1.5"], "--precision 1.5 is invalid"),
        (["--sure"], "only valid with --precision or --recall"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, options, rule):
    command, _ = command_of(tmp_path, *options, n=20)
    assert main(command) == 2
    err = capsys.readouterr().err
    assert rule in err
    assert len(err.strip().splitlines()) == 1


def test_labels_without_scores_and_no_run_are_refused(tmp_path, capsys):
    command, _ = command_of(tmp_path, n=20)
    write_lines(tmp_path / "labels.jsonl", [{"id": "other", "text": "boat", "labels": {"A": 1}}])
    assert main(command) == 2
    assert "has no score of the" in capsys.readouterr().err
    (tmp_path / "run").rmdir()
    assert main(command) == 2
    assert "is no directory" in capsys.readouterr().err
