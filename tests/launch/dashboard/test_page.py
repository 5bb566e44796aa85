"""A page that is one file has its data inside, and no text of a run can leave its place."""

import json
import re

import pytest

from gpt.errors import ConfigError
from launch.dashboard.page import page_file, served_page
from launch.reports.page import report_page
from launch.runs.history import read_history

CLOSING = "</script><script>alert(1)</script><!--"


@pytest.fixture(scope="module")
def page(written_runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    written_runs.write_run(folder / "first", steps=30)
    written_runs.write_run(folder / "second", steps=60)
    samples = [{"step": 3, "prompt": "", "text": CLOSING}, {"step": 4, "prompt": "", "text": CLOSING},
               {"step": 4, "prompt": "Once", "text": "Once upon a time"}]  # fmt: skip
    (folder / "first" / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    (folder / "first" / "config.json").write_text(json.dumps({"optimizer": {"learning_rate": 0.1, "kind": "sgd"}}))
    (folder / "second" / "config.json").write_text(json.dumps({"optimizer": {"learning_rate": 0.2, "kind": "sgd"}}))
    path = folder / "page.html"
    path.write_text(page_file([folder / "first", folder / "second"]), encoding="utf-8")
    return path


def test_the_data_is_inside_and_cannot_end_its_element(page):
    text = page.read_text(encoding="utf-8")
    (inside,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.DOTALL)
    data = json.loads(inside)
    assert data["runs"][0]["samples"][0]["text"] == CLOSING
    assert data["series"][1]["loss"]["step"] == list(range(1, 61))
    assert "alert(1)</script>" not in text


def test_only_its_own_scripts_may_run(page):
    for text in (served_page(), page.read_text(encoding="utf-8")):
        policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
        nonce = re.search(r"script-src &#x27;nonce-([\w-]+)&#x27;", policy)[1]
        assert "unsafe-eval" not in policy
        assert len(re.findall(rf'<script nonce="{nonce}"', text)) == 2
    assert served_page() != served_page(), "another nonce each time"


def test_a_browser_shows_the_file_without_a_server(page, rendered):
    shown = rendered(page.as_uri())
    assert shown.count('<svg class="chart"') == 7
    assert shown.count('class="line" d="M') >= 14 + 5, "two runs in each figure, and five keys in legends"
    assert "1 of 2 settings differ between these runs." in shown
    assert "optimizer.kind" not in shown.partition('id="settings"')[2].partition("<noscript")[0]
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in shown.partition('id="samples"')[2]
    assert "<b>Once</b> upon a time" in shown, "a text begins with its prompt, and prompts take turns"
    assert '<td class="value number">60</td>' in shown, "numbers stay on one line"
    assert "does not change" in shown


def test_what_is_not_a_run_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="no such directory"):
        page_file([tmp_path / "nowhere"])


def test_a_browser_shows_the_faults_and_the_bands_of_a_policy(tabular, rendered, tmp_path):
    tabular.write_run(tmp_path / "ppo", tabular.World(beta=0.0, lr=2.0))
    path = tmp_path / "page.html"
    path.write_text(page_file([tmp_path / "ppo"]), encoding="utf-8")
    shown = rendered(path.as_uri())
    part = shown.partition('id="policy"')[2].partition("</section>")[0]
    assert "collapsed entropy" in part
    assert "since iteration" in part
    static = report_page(read_history(tmp_path / "ppo"), now=2e9)
    bands = [page.count('<rect class="healthy"') for page in (shown, static)]
    assert bands == [9, 9], "a band in each figure of a metric that has one, on both pages"
