"""`triaxial moderate taxonomy`: the table of categories, and mistakes in one line."""

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
