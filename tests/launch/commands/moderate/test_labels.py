"""`triaxial moderate labels`: labellers merged, counts shown, mistakes in one line that quotes no text."""

import json

from launch.main import main

SECRET = "words that no output may quote"


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def run(capsys, *words: str) -> tuple[int, str, str]:
    status = main(["moderate", "labels", *words, "--taxonomy", "moderation_openai"])
    said = capsys.readouterr()
    assert SECRET not in said.out + said.err
    return status, said.out, said.err


def test_labellers_are_merged_and_counted(tmp_path, capsys):
    file = write(
        tmp_path / "l.jsonl",
        [
            {"text": SECRET, "labels": {"H": 1, "V": 0, "H2": 1}, "labeller": "ana"},
            {"text": SECRET, "labels": {"H": 1, "V": 1}, "labeller": "bo"},
            {"text": SECRET + "!", "labels": {"H": 0, "V": 0}, "labeller": "bo"},
            {"text": None, "labels": {}},
        ],
    )
    status, out, err = run(capsys, file, "--output", str(tmp_path / "out.jsonl"))
    assert (status, err) == (0, "")
    assert "4 records, 3 with a text, 2 different ids" in out
    assert "note: 1 record left out for want of a text" in out
    assert "only positive labels of H2" in out
    assert "no known label of S, SH, HR, S3, V2: a classifier cannot learn them" in out
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["labels"] for line in lines] == [{"H": 1, "H2": 1}, {"H": 0, "V": 0}]


def test_contradictions_are_refused_or_dropped(tmp_path, capsys):
    lines = [{"text": SECRET, "labels": {"H": 0, "H2": 1}}, {"text": "b", "labels": {"H": 1}}]
    file = write(tmp_path / "l.jsonl", lines)
    status, _, err = run(capsys, file)
    assert status == 2
    assert "1 of 2 texts contradict openai 1" in err
    assert "leave such texts out with `triaxial moderate labels --contradictions drop`" in err
    assert len(err.strip().splitlines()) == 1
    status, out, _ = run(capsys, file, "--contradictions", "drop")
    assert status == 0
    assert "note: 1 text left out for contradicting the taxonomy" in out


def test_nothing_to_count_is_refused_with_its_reason(tmp_path, capsys):
    status, _, err = run(capsys, write(tmp_path / "none.jsonl", []))
    assert (status, "none.jsonl: no records" in err) == (2, True)
    file = write(tmp_path / "l.jsonl", [{"text": SECRET, "labels": {"H": 0, "H2": 1}}])
    status, _, err = run(capsys, file, "--contradictions", "drop")
    assert (status, "each of 1 contradicts openai 1" in err) == (2, True)


def test_a_foreign_file_without_a_map_is_refused(tmp_path, capsys):
    (tmp_path / "x.csv").write_text(f"comment,toxic\n{SECRET},1\n")
    status, _, err = run(capsys, str(tmp_path / "x.csv"))
    assert (status, "--map" in err, len(err.strip().splitlines())) == (2, True, 1)
    status, out, _ = run(capsys, str(tmp_path / "x.csv"), "--map", "toxic=HR")
    assert (status, "1 record, 1 with a text, 1 different id\n" in out) == (0, True)
