"""`triaxial report` on runs that went well, died, or contain hostile text, and on paths that are no run.

Nothing is trained here: tests/launch/commands/test_train.py reports on real runs."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from gpt.telemetry.event_log import append_event
from gpt.telemetry.metrics import MetricsConfig, MetricsWriter
from gpt.telemetry.time_ledger import TimeLedger
from launch.main import main
from launch.reports import plots
from launch.runs.history import Series, settle

HOSTILE = '<script>alert(1)</script> & "quoted" \x1b[2J\x1b]0;title\x07'


def write_run(directory, *, steps, lost=(), spike_at=None):
    """Write a run directory with the real writers; the steps in `lost` are taken twice, by two processes."""
    for part, (first, last) in enumerate([(0, lost[1]), (lost[0], steps)] if lost else [(0, steps)]):
        resume = first if part else None
        metrics = MetricsWriter(
            MetricsConfig(wandb="disabled"), directory, run_config={}, resume_step=resume, interactive=True
        )
        with metrics, TimeLedger(directory / "ledger.jsonl", world_size=2, restart_count=part) as ledger:
            ledger.resume(step=first, tokens=100 * first)
            if part:
                metrics.event("resumed", step=first, text=f"resumed from step {first}")
            for step in range(first + 1, last + 1):
                with ledger.span("training"):
                    loss = 900.0 if step == spike_at else 8.0 - step / steps
                values = {"loss": loss, "tokens_per_s": 1000.0, "step_s": 0.1, "tokens_seen": 100 * step}
                metrics.log(step, values | {"learning_rate": 1e-4, "gradient_norm": 0.5, "peak_memory_bytes": 3 << 30})
                ledger.step_done(step=step, tokens=100 * step)
            metrics.log(last, {"validation/web <b>/loss": 7.5, "goodput": 0.5})
            metrics.event("step_skipped", step=last, text=HOSTILE, more=float("nan"))
            metrics.event("checkpoint_saved", step=last, text=f"saved {last}")


def series(*steps):
    return Series(np.array(steps), np.array(steps, dtype=np.float64))


class Tags(HTMLParser):
    """Collect the tags and attributes of a page, and check that every tag is closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.seen, self.attributes = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.attributes += attributes
        if tag not in ("meta", "html"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def report(directory, tmp_path, capsys):
    """Run `triaxial report`; returns (terminal output, page, JSON)."""
    capsys.readouterr()
    assert main(["report", str(directory), "--html", str(tmp_path / "r.html"), "--json", str(tmp_path / "r.json")]) == 0
    facts = json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)
    return capsys.readouterr().out, (tmp_path / "r.html").read_text(), facts


def test_a_restarted_run_with_hostile_text(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "canary-4711")
    run = tmp_path / "run <i>"
    write_run(run, steps=60, lost=(40, 50))
    said, page, facts = report(run, tmp_path, capsys)
    assert "\x1b" not in said
    assert "\x07" not in said
    assert "canary-4711" not in said + page
    tags = Tags(page)
    assert tags.open == []
    assert not {"script", "link", "img", "iframe", "object"} & set(tags.seen)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not [value for name, value in tags.attributes if name in ("src", "href") or "url(" in (value or "")]
    assert page.count("<svg ") == 7, "loss, gradient norm, learning rate, speed, memory, batch, goodput; no MFU here"
    assert '"line lost"' in page, "the ten steps that were taken twice"
    for kind in ("fault", "restart", "checkpoint"):
        assert f'class="mark {kind}"' in page, kind
    assert (facts["step"], facts["repeated_steps"], len(facts["processes"])) == (60, 10, 2)
    assert facts["events"] == {"step_skipped": 2, "checkpoint_saved": 2, "resumed": 1}
    assert sum(facts["seconds"].values()) == pytest.approx(facts["wall_s"])
    assert facts["validation_loss"] == {"web <b>": 7.5}
    assert f"goodput {facts['goodput']:.1%}" in " ".join(said.split())
    assert f"{facts['goodput']:.1%}" in page


def test_the_page_of_a_long_run_is_small_and_shows_a_single_spike(tmp_path, capsys):
    run = tmp_path / "run"
    write_run(run, steps=4_000, spike_at=1_777)
    _, page, _ = report(run, tmp_path, capsys)
    assert len(page) < 400_000
    band = re.search(r'<path class="band s0" d="([^"]+)"', page)[1]
    heights = [float(point.split()[1]) for point in band.strip("MZ").split("L")]
    assert min(heights) < plots.TOP + 0.1 * plots.HEIGHT, "the band reaches the top at the spike"
    assert sorted(heights)[len(heights) // 10] > 0.5 * plots.HEIGHT


def test_a_dead_or_damaged_run_shows_what_can_be_read(tmp_path, capsys):
    run = tmp_path / "run"
    write_run(run, steps=6)
    append_event(run / "events.jsonl", "from the future", step=3, text="", fields={"x": [1]})
    blamed = {"finding": "died", "reports": "runs/x/hangs/1"}
    append_event(run / "events.jsonl", "hang", step=5, text="rank 1 in step 5", fields=blamed)
    for name, junk in (
        ("metrics.jsonl", b'\xff\x00\n[1]\n"x"\n{"step": "3"}\n{"step": -1, "loss": 2}\n{"step": 7, "loss": 1e999}\n'),
        ("events.jsonl", b'{"time": 3}\n{"time": "2026", "kind": []}\n{"time": "never", "kind": "a"}\n7\n'),
        ("ledger.jsonl", b'{"process": "b"}\n{}\n'),
    ):
        with (run / name).open("ab") as file:
            file.write(junk + b'{"step": 8, "loss": 0.')
    (run / "config.json").write_text("{")
    (run / "train_summary.json").write_text("[]")
    (run / "metrics.superseded.jsonl").mkdir()
    said, page, facts = report(run, tmp_path, capsys)
    assert (facts["step"], facts["loss"]) == (6, 7.0)
    assert len(facts["problems"]) == 5, facts["problems"]
    assert "metrics.jsonl: 3 lines that cannot be read, skipped" in said
    assert "config.json: cannot be read" in page
    assert "<i class=fault></i>rank died</td><td class=text>rank 1 in step 5; stacks in runs/x/hangs/1</td>" in page
    for left in ("ledger.jsonl", "config.json", "train_summary.json", "events.jsonl"):
        (run / left).unlink()
        report(run, tmp_path, capsys)
    (run / "metrics.jsonl").write_bytes(b"")
    (run / "checkpoints").write_text("no folder")
    _, page, facts = report(run, tmp_path, capsys)
    assert (facts["step"], page.count("<svg")) == (0, 0)


def test_a_path_that_is_no_run_is_reported_in_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for path, words in (
        (tmp_path, "is not a run directory"),
        (tmp_path / "file", "no such"),
        (tmp_path / "no", "no such"),
    ):
        assert main(["report", str(path)]) == 2
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
        assert words in said.err
    write_run(tmp_path / "run", steps=2)
    capsys.readouterr()
    assert main(["report", str(tmp_path / "run"), "--html", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_steps_taken_twice_count_once():
    metrics, lost = settle([{"a": series(1, 2, 3), "b": series(3)}, {"a": series(2, 3, 4)}])
    assert metrics["a"].steps.tolist() == [1, 2, 3, 4]
    assert "b" not in metrics
    assert [{name: s.steps.tolist() for name, s in take.items()} for take in lost] == [{"a": [2, 3], "b": [3]}]
