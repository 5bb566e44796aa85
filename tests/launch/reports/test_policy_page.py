"""The part of a run's page about a policy."""

import html
import json
import re

import pytest

from launch.reports.page import report_page
from launch.reports.policy_page import MAX_VERSIONS, responses_part
from launch.runs.history import read_history


@pytest.fixture(scope="module")
def page(tabular, tmp_path_factory, written_runs):
    """Of a run that collapses; its samples hold hostile texts."""
    run = tabular.write_run(tmp_path_factory.mktemp("runs") / "ppo", tabular.World(beta=0.0, lr=2.0))
    samples = [
        {"step": step, "prompt": prompt, "text": f"{prompt} answer {step} {written_runs.HOSTILE}", "reward": step / 10}
        for step in (1, 30, 60)
        for prompt in ("Hello?", "<b>Why</b>")
    ]
    samples += [{"step": 2, "prompt": "once", "text": "once only"}, {"step": "x"}, {"step": 3, "prompt": 4, "text": ""}]
    (run / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return report_page(read_history(run), now=2e9)


def test_faults_come_first_with_rule_and_source(page, written_runs):
    tags = written_runs.Tags(page)
    assert tags.open == []
    assert not {"script", "img"} & set(tags.seen)
    titles = re.findall(r"<h2>([^<]*)</h2>", page)
    assert titles[:4] == ["Policy", "Reward and distance from the reference", "Responses over time", "Training"]
    faults = re.findall(r"<li class=(\w+)><b>([^<]*)</b>([^<]*)<p>", page)
    assert faults[0] == ("fault", "collapsed entropy", "since iteration 15")
    assert faults[-1][:2] == ("note", "exploding KL"), "it has ended"
    assert "<small>Rule: entropy below a quarter of its start. Source: arXiv 2503.14476" in page


def test_each_metric_is_drawn_with_its_healthy_band(page):
    titles = re.findall(r"<figcaption><h3>([^<]*)</h3>", page)
    for title in ("Reward, mean score", "KL, nats a response", "Entropy, nats a token", "Length, tokens a response",
                  "Clip fraction", "Explained variance of the critic", "Pre-training loss, nats a token"):  # fmt: skip
        assert title in titles
    assert "healthy: 0 to 10 (TRL, Training FAQ)" in page
    assert page.count('<rect class="healthy"') == 9, "rewards have no band"


def test_responses_to_one_prompt_are_side_by_side(page, written_runs):
    part = page.partition("<h2>Responses over time</h2>")[2].partition("<h2>")[0]
    assert re.findall(r"<p class=prompted>(.*?)</p>", part) == ["Hello?", "&lt;b&gt;Why&lt;/b&gt;"]
    assert re.findall(r"<b>step (\d+)</b> <span>([^<]*)</span>", part)[:3] == [
        ("1", "reward 0.1"),
        ("30", "reward 3"),
        ("60", "reward 6"),
    ]
    assert part.count(html.escape("<script>alert(1)</script>")) == 6
    assert "<p>answer 1 " in part, "without the prompt"
    assert "once only" not in part


def test_many_versions_are_thinned_with_the_first_and_the_last(tmp_path):
    lines = [{"step": step, "prompt": "p", "text": f"p{step}"} for step in range(1, 101)]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps = [int(step) for step in re.findall(r"<b>step (\d+)</b>", responses_part(tmp_path))]
    assert (len(steps), steps[0], steps[-1]) == (MAX_VERSIONS, 1, 100)
    assert responses_part(tmp_path / "nowhere") == ""


def test_a_healthy_run_says_so(tabular, tmp_path):
    run = tabular.write_run(tmp_path / "well", tabular.World())
    page = report_page(read_history(run), now=2e9)
    assert "The metrics show no known fault." in page
    assert "Responses over time" not in page
