"""`triaxial moderate taxonomy`: the table of categories, and mistakes in one line."""

import json

from launch.main import main


def test_check_shows_the_categories(capsys):
    assert main(["moderate", "taxonomy", "check", "moderation_openai"]) == 0
    out = capsys.readouterr().out
    assert "openai 1: 8 categories, digest " in out
    assert "Hate with threats" in out


def test_a_cycle_is_one_line_and_status_2(tmp_path, capsys):
    path = tmp_path / "bad.toml"
    rows = "".join(
        f'[[category]]\nid = "{one}"\ntitle = "t"\ndefinition = "d"\nparent = "{other}"\n'
        for one, other in ("AB", "BA")
    )
    path.write_text(f'name = "x"\nversion = 1\n{rows}')
    assert main(["moderate", "taxonomy", "check", str(path)]) == 2
    err = capsys.readouterr().err
    assert "cycle" in err
    assert len(err.strip().splitlines()) == 1


def test_paths_of_the_wrong_kind_are_one_line(tmp_path, capsys):
    (tmp_path / "bytes.toml").write_bytes(b"\x88\x00\xff" * 900)
    page = ["moderate", "taxonomy", "page", "moderation_openai", "--output"]
    check = ["moderate", "taxonomy", "check"]
    for words, why in (
        ([*check, str(tmp_path)], "is a folder, not a regular file"),
        ([*check, str(tmp_path / "none.toml")], "no such taxonomy"),
        ([*check, str(tmp_path / "bytes.toml")], "is not valid TOML"),
        ([*page, str(tmp_path / "none" / "page.html")], "no such folder"),
        ([*page, str(tmp_path)], "folder"),
    ):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert why in err
        assert len(err.strip().splitlines()) == 1


def versions(tmp_path):
    head = '[[category]]\ntitle = "t"\ndefinition = "d"\n'
    (tmp_path / "v1.toml").write_text(f'name = "x"\nversion = 1\n{head}id = "a"\n{head}id = "b"\n')
    (tmp_path / "v2.toml").write_text(
        f'name = "x"\nversion = 2\n{head}id = "c"\n[migration]\nfrom = 1\nmerged = {{c = ["a", "b"]}}\n'
    )
    return str(tmp_path / "v1.toml"), str(tmp_path / "v2.toml")


def test_a_file_of_labels_migrates(tmp_path, capsys):
    one, two = versions(tmp_path)
    lines = [{"text": "t", "labels": {"a": 1}, "taxonomy": "x 1"}, {"text": "u", "labels": {"a": 0}, "labeller": "ana"}]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["moderate", "taxonomy", "migrate", str(tmp_path / "l.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    assert main([*words, "--versions", one, two]) == 0
    assert "x 1 to x 2: 2 texts, 2 known labels before, 1 after" in capsys.readouterr().out
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(line["labels"], line["taxonomy"]) for line in found] == [({"c": 1}, "x 2"), ({}, "x 2")]
    assert found[1]["labeller"] == "ana"
    assert main([*words, "--versions", two, one]) == 2
    assert main([*words, "--versions", one]) == 2
    assert main(["moderate", "taxonomy", "check", two, "--before", one]) == 0


def test_the_page_is_written(tmp_path):
    page = tmp_path / "page.html"
    assert main(["moderate", "taxonomy", "page", "moderation_openai", "--output", str(page)]) == 0
    assert page.read_text().startswith("<!doctype html>")
