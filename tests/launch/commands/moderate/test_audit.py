"""`triaxial moderate audit`: agreement, the auditor's sample and F1, the rule of 30%, and the cross-fit."""

import json

import pytest
from moderation_files import SECRET, labelled_and_scored, write_lines, write_taxonomy

from gpt.moderation.loop.label_errors import fold_of
from launch.main import main


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_whole_audit(tmp_path, capsys):
    labels, scores, truth = labelled_and_scored(tmp_path)
    command = ["moderate", "audit", str(labels), "--taxonomy", str(write_taxonomy(tmp_path))]
    sample, report = tmp_path / "sample.jsonl", tmp_path / "audit.json"
    assert main([*command, "--scores", str(scores), "--sample", str(sample), "--halves", str(tmp_path / "halves")]) == 0
    chosen = lines_of(sample)
    assert len(chosen) == 40
    assert all("labels" not in one and one["pipeline"].split(":")[0] in ("labelled", "scored") for one in chosen)
    halves = [lines_of(tmp_path / "halves" / f"half{i}.jsonl") for i in (0, 1)]
    assert sum(map(len, halves)) == 300
    assert all(fold_of([one["id"]]) == [i] for i, half in enumerate(halves) for one in half)

    # the auditor agrees except on the first text, where A is wrong
    audited = [
        {
            "id": one["id"],
            "text": one["text"],
            "labels": dict(zip("AB", truth[int(one["id"][1:])].tolist(), strict=True)),
        }
        for one in chosen
    ]
    audited[0]["labels"]["A"] = 1 - audited[0]["labels"]["A"]
    auditor = write_lines(tmp_path / "auditor.jsonl", audited)
    assert "labellers" not in capsys.readouterr().out
    assert main([*command, "--auditor", str(auditor), "--random-part", str(auditor), "--json", str(report)]) == 0
    out = capsys.readouterr().out
    assert SECRET not in out
    assert "A: 1 of 40 labels of the random part are wrong (2%" in out
    assert "keep the labels" in out
    found = json.loads(report.read_text())
    assert [one["audited"] for one in found["audit"]] == [40, 40]
    assert found["audit"][0]["f1"]["estimate"] < found["audit"][1]["f1"]["estimate"] == 1


def test_an_audit_of_nothing_says_what_to_ask_for(tmp_path, capsys):
    labels, _, _ = labelled_and_scored(tmp_path, n=20)
    assert main(["moderate", "audit", str(labels), "--taxonomy", str(write_taxonomy(tmp_path))]) == 0
    out = capsys.readouterr().out
    assert "20 labelled texts of fewer than two labellers" in out
    assert "Give --sample, --auditor" in out


def test_agreement_of_two_labellers(tmp_path, capsys):
    rows = [(1, 1), (0, 0), (1, 0), (0, 0), (1, 1), (0, 0)]
    lines = [
        {"id": f"t{i}", "text": f"boat {i}", "labels": {"A": row[who]}, "labeller": name}
        for i, row in enumerate(rows)
        for who, name in enumerate(("ana", "bo"))
    ]
    path, report = write_lines(tmp_path / "l.jsonl", lines), tmp_path / "r.json"
    command = ["moderate", "audit", str(path), "--taxonomy", str(write_taxonomy(tmp_path)), "--json", str(report)]
    assert main(command) == 0
    found = json.loads(report.read_text())["agreement"]
    # 12 votes, 5 positive: observed 2 / 12, expected 2 * 5 * 7 / (12 * 11)
    assert found["alpha"]["A"] == pytest.approx(1 - (2 / 12) / (70 / 132))
    assert found["alpha"]["B"] is None
    assert found["pairs"][0]["kappa"]["estimate"] == pytest.approx(2 / 3)
    assert "Krippendorff" in capsys.readouterr().out


def test_the_cross_fit_flags_planted_errors_first(tmp_path, capsys):
    scored = [{"id": f"t{i}", "scores": {"A": 0.9 if i % 3 == 0 else 0.1, "B": 0.2}} for i in range(60)]
    texts = [
        {"id": f"t{i}", "text": f"{SECRET} {i}", "labels": {"A": int(i % 3 == 0) if i not in (6, 7) else int(i == 7)}}
        for i in range(60)
    ]
    labels, scores = write_lines(tmp_path / "l.jsonl", texts), write_lines(tmp_path / "s.jsonl", scored)
    flagged = tmp_path / "flagged.jsonl"
    command = ["moderate", "audit", str(labels), "--taxonomy", str(write_taxonomy(tmp_path)), "--scores", str(scores)]
    assert main([*command, "--cross-fit", "--flagged", str(flagged)]) == 0
    assert {one["id"] for one in lines_of(flagged)} == {"t6", "t7"}
    out = capsys.readouterr().out
    assert "A: 2 of 60 labels disagree" in out
    assert SECRET not in out


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["--cross-fit"], "--cross-fit needs --scores"),
        (["--flagged", "x.jsonl"], "only valid with --cross-fit"),
        (["--per-category", "0"], "must be at least 1"),
        (["--seed", "-1"], "--seed -1 is invalid"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, options, rule):
    labels, _, _ = labelled_and_scored(tmp_path, n=20)
    assert main(["moderate", "audit", str(labels), "--taxonomy", str(write_taxonomy(tmp_path)), *options]) == 2
    err = capsys.readouterr().err
    assert rule in err
    assert len(err.strip().splitlines()) == 1


def test_an_auditor_of_other_texts_is_refused(tmp_path, capsys):
    labels, _, _ = labelled_and_scored(tmp_path, n=20)
    other = write_lines(tmp_path / "o.jsonl", [{"id": "x", "text": "boat", "labels": {"A": 1}}])
    command = ["moderate", "audit", str(labels), "--taxonomy", str(write_taxonomy(tmp_path)), "--auditor", str(other)]
    assert main(command) == 2
    assert "has none of the 20 labelled texts" in capsys.readouterr().err
