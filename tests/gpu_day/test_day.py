"""The GPU day without a GPU: limits, failures, a session that is killed, the page; rehearsed, every part on the CPU."""

import json
import os
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
LATER = "fails,waits_once,raises,dies,waits,leaves_out"


def start(results, names):
    command = [sys.executable, HERE / "day_program.py", results, names]
    return subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def result_of(results, name):
    return json.loads((results / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    """A session that is killed in its second part, and a second call: the results after each, and its output."""
    results = tmp_path_factory.mktemp("day")
    session = start(results, "fails,waits_once")
    marker, waiting = results / "waits_once" / "again", results / "waits_once.json"
    while not (marker.exists() and json.loads(waiting.read_text())["checks"]):
        assert session.poll() is None, session.communicate()[0]
        time.sleep(0.1)
    os.kill(session.pid, signal.SIGKILL)
    session.communicate()
    first = {name: result_of(results, name) for name in ("fails", "waits_once")}
    again = start(results, LATER)
    output = again.communicate(timeout=500)[0]
    return results, first, output, again.returncode


@pytest.mark.timeout(600)
def test_a_killed_session_keeps_what_it_found_and_the_next_one_goes_on(day):
    results, first, output, _ = day
    assert first["fails"]["status"] == "failed"
    assert first["waits_once"]["status"] == "running"
    assert [check["name"] for check in first["waits_once"]["checks"]] == ["before the wait"]
    assert "[1/6] fails: failed before; --again repeats it" in output
    assert result_of(results, "fails") == first["fails"], "it was not run again"
    assert result_of(results, "waits_once")["status"] == "passed"
    assert len(result_of(results, "waits_once")["checks"]) == 1, "those of the killed call are gone"


@pytest.mark.timeout(600)
def test_each_end_of_a_part_is_told_and_stops_no_other(day):
    results, _, output, status = day
    found = {name: result_of(results, name) for name in LATER.split(",")}
    states = {name: one["status"] for name, one in found.items()}
    assert states == {
        "fails": "failed",
        "waits_once": "passed",
        "raises": "error",
        "dies": "error",
        "waits": "time limit",
        "leaves_out": "left out",
    }
    assert status == 1
    assert [check["passed"] for check in found["fails"]["checks"]] == [True, False, False, None]
    assert found["raises"]["text"] == "ValueError: a tensor is on the wrong device"
    assert [check["passed"] for check in found["raises"]["checks"]] == [True], "what came before the error is kept"
    assert found["dies"]["text"].startswith("the process ended with status -6")
    assert found["waits"]["text"].startswith("ended after 25 s")
    assert [check["passed"] for check in found["waits"]["checks"]] == [True], "what came before the limit is kept"
    assert found["leaves_out"]["text"] == "it needs a GPU"
    assert "written to" in output


@pytest.mark.timeout(600)
def test_the_page_and_the_report_hold_every_part(day):
    results, *_ = day
    report = json.loads((results / "gpu_report.json").read_text())
    assert list(report["parts"]) == LATER.split(",")
    assert report["parts"]["fails"]["checks"][1]["passed"] is False
    page = (results / "index.html").read_text()
    assert "&lt;b&gt;&amp;" in page, "notes are escaped"
    assert "<script" not in page
    tags = OpenTags()
    tags.feed(page)
    assert tags.open == []
    for text in ("1 of 6", "time limit", "a tensor is on the wrong device", "1,234", "too far"):
        assert text in page


class OpenTags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "html"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_without_a_driver_make_gpu_says_so_in_one_line_and_installs_nothing():
    done = subprocess.run([ROOT / ".ci/gpu"], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "this machine has no NVIDIA driver" in done.stderr


@pytest.mark.rehearse
@pytest.mark.timeout(3000)
def test_every_part_that_a_cpu_can_run_passes_on_a_cpu(tmp_path):
    command = [sys.executable, "benchmarks/gpu_day/day.py", "--device", "cpu", "--tiny", "--results", tmp_path]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=2900)
    report = json.loads((tmp_path / "gpu_report.json").read_text())
    states = {name: part["status"] for name, part in report["parts"].items()}
    assert set(states.values()) <= {"passed", "left out"}, done.stdout
    assert [name for name, state in states.items() if state == "left out"] == ["tests"]
    assert done.returncode == 0
