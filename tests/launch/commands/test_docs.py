"""`triaxial docs`: the folders, the pages, and the name of a page that was meant."""

from pathlib import Path

import pytest

from launch.main import main

ROOT = Path(__file__).resolve().parents[3]


def test_the_folders_and_every_page_are_named(capsys):
    assert main(["docs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"documentation: {ROOT / 'docs'}"
    assert lines[1].startswith(f"batch scripts: {ROOT / 'slurm'}; ")
    pages = [line.strip() for line in lines[4:]]
    assert pages[0].startswith("tutorials/"), "the tutorials come first"
    expected = {str(path.relative_to(ROOT / "docs").with_suffix("")) for path in (ROOT / "docs").rglob("*.md")}
    assert set(pages) == expected | {"slurm/README", "slurm/train.sbatch", "slurm/prepare.sbatch"}


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("settings", "docs/settings.md"),
        ("docs/guides/data/prepare.md", "docs/guides/data/prepare.md"),
        ("first_model", "docs/tutorials/first_model.md"),
        ("slurm/train.sbatch", "slurm/train.sbatch"),
    ],
)
def test_a_page_is_printed_by_its_name_or_path(capsys, name, file):
    assert main(["docs", name]) == 0
    assert capsys.readouterr().out == (ROOT / file).read_text()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tutorials/frist_model", "did you mean 'tutorials/first_model'?"),
        ("guides/training/plan", "did you mean 'guides/training/planning' or "),
        ("scaling", "is the name of several pages: "),
        ("zzz", "use one of those that `triaxial docs` lists"),
    ],
)
def test_another_name_is_one_line(capsys, name, said):
    assert main(["docs", name]) == 2
    assert said in capsys.readouterr().err
