"""What one monitor writes: the text of a report, the error file for the launcher, its words without a verdict."""

import dataclasses
import json
import sys

import pytest
from hang_reports import collective, settings, waiting

from parallel.health.hang_response import (
    Exchange,
    lines_without_verdict,
    publish_verdict,
    report_text,
    write_error_file,
)
from parallel.health.heartbeat import LOST, RUNNING, Beat


def test_the_text_of_a_report_has_stacks_and_marks_open_collectives():
    done, open_one = collective("all_gather", 39), collective("all_reduce", 40, done=False)
    text = report_text(waiting(1, died_of="SIGABRT", departures=("a before b",)), "the stacks", [done, open_one])
    assert text.startswith("rank 1 (node1, pid 101): running in step 9 (training), no progress for 10.0 s\n")
    assert "process state S; SIGABRT" in text
    assert "the stacks" in text
    assert f"\n  1 {done}\n> 1 {open_one}\n" in text
    assert text.endswith("departure: a before b\n")
    without = report_text(waiting(1), "", None)
    assert "none: the process did not answer" in without
    assert "No collectives: the flight recorder did not answer" in without


def test_the_error_file_of_the_rank_itself_stays(tmp_path):
    file = tmp_path / "error.json"
    ours = settings(tmp_path, 0, error_file=str(file))
    write_error_file(ours, "no progress")
    message = json.loads(file.read_text())["message"]
    assert (message["message"], message["extraInfo"]["watchdog"]) == ("no progress", True)
    file.write_text("its own")
    write_error_file(ours, "no progress")
    assert file.read_text() == "its own"


@pytest.mark.skipif(sys.platform != "linux", reason="the watchdog needs Linux")
def test_without_a_verdict_a_monitor_describes_its_own_rank(tmp_path):
    exchange = Exchange("", report=waiting(1), trouble="No space left on device")
    lines = lines_without_verdict(settings(tmp_path, 1), Beat(3, 6, 8.0, RUNNING, "training"), 9.0, exchange)
    assert lines[0].startswith("triaxial: error: no progress for 9.0 s: rank 1 (node1, pid 101) in step 6 (training);")
    assert "last collective of rank 1: all_reduce" in lines[1]
    assert f"no reports could be exchanged in {tmp_path} (No space left on device)" in lines[-1]
    lost = Beat(3, 6, 8.0, LOST, "training")
    killed = Exchange("SIGKILL", report=dataclasses.replace(waiting(1), status="died"))
    for beat, other, what in ((lost, exchange, "lost its peers"), (lost, killed, "died")):
        (line, *_) = lines_without_verdict(settings(tmp_path, 1), beat, 0.0, other)
        assert line.startswith(f"triaxial: error: rank 1 (node1, pid 101) {what} in step 6 (training); no verdict")


def test_a_verdict_needs_no_event(tmp_path):
    """A campaign replaced events.jsonl by a folder: the event's error then ended the thread that had the verdict."""
    folder = tmp_path / "hangs" / "now"
    folder.mkdir(parents=True)
    (tmp_path / "events.jsonl").mkdir()
    decision = publish_verdict(settings(tmp_path, 0), folder, [waiting(rank) for rank in range(2)])
    assert json.loads((folder / "verdict.json").read_text())["lines"] == decision["lines"]


@pytest.mark.parametrize(("status", "blames_its_node"), [("died", True), ("failed", False)])
def test_only_faults_that_may_be_a_machine_s_blame_a_node(tmp_path, status, blames_its_node):
    """A rank that failed has raised an exception, which another node would raise too."""
    folder = tmp_path / "hangs" / "now"
    folder.mkdir(parents=True)
    reports = [waiting(0), dataclasses.replace(waiting(1), status=status), waiting(2), waiting(3)]
    assert publish_verdict(settings(tmp_path, 0), folder, reports)["hosts"] == ["node1"]
    assert (folder / "blamed_nodes").exists() == blames_its_node
    if blames_its_node:
        assert (folder / "blamed_nodes").read_text() == "node1\n"
