"""`triaxial data mixture`: the shipped example without files, and a training recipe with them."""

import json
import re

import pytest

from launch.main import main


def test_the_shipped_example_prints_the_papers_table(tmp_path, capsys):
    assert main(["data", "mixture", "mixture_gpt3", "--json", str(tmp_path / "plan.json")]) == 0
    shown = capsys.readouterr().out
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["largest_error"] < 1e-3
    assert plan["realised_tokens"] == plan["planned_tokens"] == 300_000_000_000
    by_name = {row["name"]: row for row in plan["corpora"]}
    assert {name: (round(row["epochs"], 2), row["stated_epochs"]) for name, row in by_name.items()} == {
        "common_crawl": (0.43, 0.44),
        "webtext2": (3.44, 2.9),
        "books1": (1.98, 1.9),
        "books2": (0.43, 0.43),
        "wikipedia": (2.97, 3.4),
    }
    # Each printed number is rounded by up to half a unit. Within that, all of the paper's epochs but one are possible.
    percent = {"common_crawl": 60, "webtext2": 22, "books1": 8, "books2": 8, "wikipedia": 3}
    impossible = []
    for name, row in by_name.items():
        billions, half = row["n_tokens"] / 1e9, 0.05 if row["stated_epochs"] > 1 else 0.005
        least, most = (percent[name] - 0.5) * 3 / (billions + 0.5), (percent[name] + 0.5) * 3 / (billions - 0.5)
        if not least - half <= row["stated_epochs"] <= most + half:
            impossible.append(name)
    assert impossible == ["webtext2"], "as the recipe's note says"
    line = next(line for line in shown.splitlines() if "webtext2" in line)
    assert line.split() == [
        "webtext2",
        "19.0B",
        "21.78%",
        "65,346,534,653",
        "65,346,535,424",
        "+0.0000%",
        "3.439",
        "2.9",
    ]
    assert "WebText2: 22% of 300B tokens" in " ".join(shown.split())


def test_a_narrow_terminal_cuts_off_no_number(capsys, monkeypatch):
    for name, value in {"COLUMNS": "80", "FORCE_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)  # rich takes this for a terminal
    assert main(["data", "mixture", "mixture_gpt3"]) == 0
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert "…" not in shown
    assert "common_crawl" in shown, "on one line"
    line = next(line for line in shown.splitlines() if "webtext2" in line)
    assert line.split() == ["webtext2", "19.0B", "21.78%", "65.3B", "+0.0000%", "3.439", "2.9"]


def test_ten_trillion_tokens_by_an_override(tmp_path, capsys):
    words = ["--mixture.planned_tokens", "10_000_000_000_000", "--json", str(tmp_path / "plan.json")]
    assert main(["data", "mixture", "mixture_gpt3", *words]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert sum(row["realised_tokens"] for row in plan["corpora"]) == 10_000_000_000_000
    assert plan["largest_error"] < 1e-6


def test_a_training_recipe_is_planned_from_its_files_in_whole_steps(tiny_corpus, capsys):
    train = ", ".join(
        f'{{ path = "{tiny_corpus.folder}/train", name = "{name}", weight = {weight} }}'
        for name, weight in {"often": 1.0, "rare": 0.001}.items()
    )
    words = ["--train.total_tokens", "1000", "--data.train", f"[{train}]"]
    assert main(["data", "mixture", str(tiny_corpus.recipe), *words]) == 0
    shown = capsys.readouterr().out
    assert "16 sequences of 64 tokens = 1,024 tokens" in shown  # 2 steps of 512
    assert "rare: 0 sequences differ by -100.00% from its share of 0.02" in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[mixture]\nseq_len = 8\nplanned_tokens = 8\ncorpora = []\n", "no corpus in the mixture"),
        ("[mixture]\nseq_len = 8\n[run]\nseed = 1\n", "has only the table [mixture]. Remove [run]"),
        ("[run]\nseed = 1\n", "has neither the table [data]"),
        ("[mixture]\nseq_len = 8\nplaned_tokens = 8\ncorpora = []\n", "did you mean 'planned_tokens'?"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, text, message):
    recipe = tmp_path / "plan.toml"
    recipe.write_text(text)
    assert main(["data", "mixture", str(recipe)]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
