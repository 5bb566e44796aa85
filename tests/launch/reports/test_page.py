"""The page of a training run shows what the run did: its figures, plots, marks, time and tables."""

import html
import json
import re

import pytest

from gpt.telemetry.event_log import append_event
from gpt.telemetry.metrics import MetricsConfig, MetricsWriter
from launch.reports import plots
from launch.reports.page import MAX_LOST, event_marks, report_page
from launch.runs.history import read_history

NOW = 2e9  # seconds since 1970


def page_of(run):
    return report_page(read_history(run), now=NOW)


@pytest.fixture
def restarted(written_runs, tmp_path):
    """A run of 60 steps in two processes, of which the second repeated ten."""
    run = tmp_path / "run <i>"
    written_runs.write_run(run, steps=60, lost=(40, 50))
    return run


def test_the_page_has_the_figures_and_tables_of_the_run(restarted, written_runs):
    history = read_history(restarted)
    page = report_page(history, now=NOW)
    tags = written_runs.Tags(page)
    assert tags.open == []
    assert "<h1>run &lt;i&gt;</h1>" in page
    assert html.escape(written_runs.HOSTILE).split("\x1b")[0] in page
    assert not {"script", "link", "img", "iframe"} & set(tags.seen)
    tiles = dict(re.findall(r"<div><span>([^<]*)</span><b>([^<]*)</b>", page))
    assert (tiles["step"], tiles["restarts"], tiles["faults"]) == ("60", "1", "2")
    assert tiles["goodput"] == f"{history.account.goodput:.1%}"
    assert tiles["validation loss, web &lt;b&gt;"] == "7.5000"
    assert tiles["loss"] == "7.4917", "the median of steps 30 and 31: each step counts once"
    assert re.findall(r"<h2>([^<]*)</h2>", page) == [
        "Training",
        "Where the time went",
        "Faults, warnings and restarts",
        "Checkpoints",
        "Processes",
    ]
    wall = page.partition("Where the time went")[2]
    shares = [float(share) for share in re.findall(r"<td>([\d.]+)%</td></tr>", wall)]
    assert sum(shares[:-1]) == pytest.approx(100, abs=0.1)
    assert shares[-1] == 100


def test_each_metric_that_the_run_logged_has_a_plot(restarted):
    page = page_of(restarted)
    titles = re.findall(r"<figcaption><h3>([^<]*)</h3>", page)
    assert titles == [
        "Loss, nats a token",
        "Gradient norm, before clipping",
        "Learning rate",
        "Tokens a second",
        "Memory of the main rank, GiB",
        "Batch, tokens a step",
        "Goodput since the start of the run",
    ], "no MFU, which the run did not log"
    assert "<i class=s1></i>validation/web &lt;b&gt;</span>" in page, "its line is named next to the training loss"
    assert page.count('class="line lost"') == 7, "the ten steps that were repeated, in each plot"


def test_the_ticks_of_a_small_share_differ(tmp_path):
    with MetricsWriter(MetricsConfig(wandb="disabled"), tmp_path, run_config={}, resume_step=None) as writer:
        for step in (1, 2):
            writer.log(step, {"loss": 3.0, "mfu": 0.01 * step})
    drawn = page_of(tmp_path).partition("Model FLOP utilisation")[2].partition("</svg>")[0]
    ticks = re.findall(r">([\d.]+%)<", drawn)
    assert len(ticks) > 3
    assert len(set(ticks)) == len(ticks)


def test_marks_are_the_events_with_a_step_and_faults_are_on_top(restarted):
    append_event(restarted / "events.jsonl", "checkpoint_estimate", step=7, text="12 MB", fields={})
    append_event(restarted / "events.jsonl", "spike", step=9, text="loss 900", fields={})
    append_event(restarted / "events.jsonl", "checkpoint_saved", step=33, text="", fields={"checkpoint_step": 30})
    marks = event_marks(read_history(restarted))
    assert {(mark.step, mark.kind) for mark in marks} == {
        (50, "fault"),
        (60, "fault"),
        (9, "warning"),
        (40, "restart"),
        (50, "checkpoint"),
        (60, "checkpoint"),
        (30, "checkpoint"),
    }
    assert [mark.kind for mark in marks[-2:]] == ["fault", "fault"], "drawn last"
    assert "step 9: loss 900" in [mark.title for mark in marks]


def test_a_restart_that_only_the_ledger_knows_is_marked(restarted):
    (restarted / "events.jsonl").unlink()
    (mark,) = event_marks(read_history(restarted))
    assert (mark.step, mark.kind, mark.title) == (40, "restart", "step 40: continued in a new process")


def test_the_page_of_a_long_run_is_small_and_shows_a_single_spike(written_runs, tmp_path):
    written_runs.write_run(tmp_path / "run", steps=4_000, spike_at=1_777)
    page = page_of(tmp_path / "run")
    assert len(page) < 400_000
    band = re.search(r'<path class="band s0" d="([^"]+)"', page)[1]
    heights = [float(point.split()[1]) for point in band.strip("MZ").split("L")]
    assert min(heights) < plots.TOP + 0.1 * plots.HEIGHT, "the band reaches the top at the spike"
    assert sorted(heights)[len(heights) // 10] > 0.5 * plots.HEIGHT


def test_only_the_newest_lost_steps_are_drawn(tmp_path):
    takes = [{"step": step, "loss": 3.0} for _ in range(MAX_LOST + 9) for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in takes))
    assert page_of(tmp_path).count('class="line lost"') == MAX_LOST


def test_a_run_that_wrote_little_has_a_page(tmp_path):
    """Only what was written is shown; what cannot be read is named."""
    (tmp_path / "config.json").write_text("{")
    page = page_of(tmp_path)
    assert "<p class=problem>config.json: cannot be read</p>" in page
    assert "<h2>" not in page
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "peak_memory_bytes": 1048576, "mfu": 0.005}\n')
    page = page_of(tmp_path)
    assert re.findall(r"<h2>([^<]*)</h2>", page) == ["Training"]
    assert "Memory of the main rank, MiB" in page
    assert "Model FLOP utilisation" in page


def test_the_page_shows_how_the_run_was_started(restarted):
    config = {"parallel": {"tensor": 2, "pipeline": 3}, "optimizer": {"kind": "<adamw>"}}
    (restarted / "config.json").write_text(json.dumps(config))
    (restarted / "software.json").write_text(json.dumps({"triaxial": "0.2", "commit": "0123abcd-dirty"}))
    samples = [{"step": step, "prompt": "Once", "text": f"Once <i>{step}"} for step in range(1, 31)]
    (restarted / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    page = page_of(restarted)
    assert "<p class=note>triaxial 0.2, commit 0123abcd-dirty</p><details><summary>5 settings</summary>" in page
    assert "<td class=word>optimizer.kind</td><td class=text>&lt;adamw&gt;</td>" in page
    assert "tensor 2 x pipeline 3 x data 1" in page
    assert "<tr><td>0</td><td>1</td><td>2</td><td>3</td><td>4</td><td>5</td></tr>" in page
    shown = [int(step) for step in re.findall(r"<b>Once</b> &lt;i&gt;(\d+)", page)]
    assert (len(shown), shown[-1], sorted(shown)) == (8, 30, shown)
