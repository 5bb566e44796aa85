"""The whole report by its command: every part is there, nothing hostile becomes HTML, and no text is shown."""

import json
import re
import shutil

import pytest

from launch.main import main


@pytest.fixture(scope="module")
def report(made, hostile, lines_to):
    """The report of two versions, whose names are hostile too, with all parts: the page and the JSON."""
    folder = made.folder
    answers = [
        {"id": f"t{i}", "text": f"Text {i}.", "labeller": name, "labels": {"S": (i + k) % 3 == 0, "H": 0},
         "pipeline": hostile if i % 2 else "random", "seconds": 3}
        for k, name in enumerate(("ana", hostile)) for i in range(30)
    ]  # fmt: skip
    lines_to(folder / "answers.jsonl", answers)
    second = folder / "<img src=x onerror=1>.jsonl"
    shutil.copy(folder / "second.jsonl", second)
    second.with_suffix(".summary.json").write_text(json.dumps({"model": hostile}))
    words = ["moderate", "report", folder / "first.jsonl", second, "--labels", folder / "labels.jsonl"]
    words += ["--probes", made.probes("p1.json", model="m-first"), made.probes("p2.json", model=hostile)]
    words += ["--labelled", folder / "answers.jsonl", "--resamples", 20]
    words += ["--round", 100, folder / "first.jsonl", "--round", 200, folder / "second.jsonl"]
    words += ["--html", folder / "report.html", "--json", folder / "report.json"]
    assert main(list(map(str, words))) == 0
    return (folder / "report.html").read_text(), json.loads((folder / "report.json").read_text())


def test_every_part_is_there(report):
    page, figures = report
    heads = re.findall(r"<h2>(.*?)</h2>", page)
    assert heads == [
        "Categories",
        "&lt;img src=x onerror=1&gt; against first",
        "Precision and recall",
        "Calibration",
        "Confusion",
        "Functional tests",
        "Counterfactuals",
        "Perturbations",
        "Slices",
        "Input reduction",
        "Rounds",
        "Cost of labels",
    ]
    assert page.count('aria-label="precision over recall of') == 9
    assert page.count('aria-label="calibration of') == 9
    assert page.count("<div class=confusion>") == 18
    assert page.count("class=heat ") == 2 * (2 + 2) + 2
    assert "Cohen's kappa" in page
    second = "&lt;img src=x onerror=1&gt;"
    assert page.count(f"<span>AUPRC of any, {second}</span>") == 1, "a tile says whose figure it is"
    assert page.count(f"<th colspan=2>{second}, cases about</th>") == 1, "columns of targets say whose they are"
    assert [one["labels"] for one in figures["rounds"]] == [100, 200]
    assert figures["cost"]["total"]["labels"] == 60
    assert figures["auprc_gain"]["S"]["low"] > 0


def test_nothing_hostile_becomes_html_and_no_text_is_shown(report, made, request):
    page, _ = report
    assert "<script" not in page
    assert "<img" not in page
    assert not re.search(r"Text \d+\.", page)
    assert "http" not in page
    with request.getfixturevalue("browsing")() as browser:  # skips without a browser, after what needs none
        tab = browser.page((made.folder / "report.html").as_uri())
        assert tab.value("document.title") == "openai 1: moderation report"
        assert tab.value("document.images.length + document.scripts.length") == 0
        assert tab.value("document.querySelectorAll('svg').length") == 20
        assert tab.value("document.documentElement.scrollWidth") <= 1100
        tab.size(390, 800, dark=True)
        assert tab.value("document.documentElement.scrollWidth") <= 390


def test_one_version_alone(made, capsys):
    out = made.folder / "one.html"
    words = ["moderate", "report", made.folder / "first.jsonl", "--labels", made.folder / "labels.jsonl"]
    assert main([*map(str, words), "--html", str(out), "--resamples", "10"]) == 0
    shown = capsys.readouterr().out
    assert "240 labelled texts" in shown
    assert "any" in shown
    page = out.read_text()
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Categories", "Precision and recall", "Calibration", "Confusion"]
    assert "undefined" not in page
