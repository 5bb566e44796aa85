"""`triaxial report` on runs that went well, died, or contain hostile text, and on paths that are no run.

Nothing is trained here: tests/launch/commands/test_train.py reports on real runs."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from gpt.telemetry.event_log import append_event
from launch.main import main

ROOT = Path(__file__).resolve().parents[3]


def report(directory, tmp_path, capsys):
    """Run `triaxial report`; returns (terminal output, page, JSON)."""
    capsys.readouterr()
    assert main(["report", str(directory), "--html", str(tmp_path / "r.html"), "--json", str(tmp_path / "r.json")]) == 0
    facts = json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)
    return capsys.readouterr().out, (tmp_path / "r.html").read_text(), facts


def test_a_restarted_run_with_hostile_text(written_runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "canary-4711")
    run = tmp_path / "run <i>"
    written_runs.write_run(run, steps=60, lost=(40, 50))
    said, page, facts = report(run, tmp_path, capsys)
    assert "\x1b" not in said
    assert "\x07" not in said
    assert "canary-4711" not in said + page
    tags = written_runs.Tags(page)
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


def test_a_dead_or_damaged_run_shows_what_can_be_read(written_runs, tmp_path, capsys):
    run = tmp_path / "run"
    written_runs.write_run(run, steps=6)
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


def test_a_path_that_is_no_run_is_reported_in_one_line(written_runs, tmp_path, capsys):
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
    written_runs.write_run(tmp_path / "run", steps=2)
    capsys.readouterr()
    assert main(["report", str(tmp_path / "run"), "--html", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_runs_are_served_until_ctrl_c(written_runs, tmp_path):
    for name in ("one", "two"):
        written_runs.write_run(tmp_path / name, steps=5)
    command = [sys.executable, "-m", "launch.main", "report", "--serve", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            line = process.stdout.readline()
            address = line.partition("on this machine only: ")[2].partition(" ")[0]
            with urllib.request.urlopen(f"{address}runs.json", timeout=60) as answer:
                assert [run["name"] for run in json.load(answer)] == ["one", "two"]
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()


def test_mistakes_with_the_page_of_several_runs(written_runs, tmp_path, capsys):
    written_runs.write_run(tmp_path / "one", steps=5)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for words, message in (
            (["--serve", "--port", "99999"], "--port 99999 is no port"),
            (["--serve", "--port", port], f"--port {port}: Address already in use. Use another port"),
            (["--port", "8000"], "--port 8000 is only for --serve"),
        ):
            assert main(["report", str(tmp_path / "one"), *words]) == 2
            assert message in capsys.readouterr().err
