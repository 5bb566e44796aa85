"""The watchdog of one rank with its real monitor process, and which errors count as lost peers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpt.errors import ConfigError
from parallel.agreement import PeerLost
from parallel.checkpoint.save import save_given_up
from parallel.errors import CheckpointError
from parallel.health.watchdog import lost_peers

ROOT = Path(__file__).resolve().parents[3]


def test_a_save_that_was_given_up_because_a_peer_died_is_no_user_mistake(tmp_path):
    def fail(error, cause):
        try:
            raise error from cause
        except ConfigError as raised:
            return lost_peers(raised)

    lost = PeerLost("another rank died or cannot be reached (Connection closed by peer)")
    assert fail(save_given_up(tmp_path, lost), lost)
    assert not fail(CheckpointError(tmp_path, "not saved: the gloo of the disk"), OSError(28, "full"))
    assert not fail(ConfigError("a mistake"), None)
    assert lost_peers(RuntimeError("[gloo] Connection closed by peer"))
    assert not lost_peers(RuntimeError("[gloo] rv != -1. Too many open files")), "the fault is of this process"


WATCHED = """
import sys, time
from pathlib import Path
from parallel.health.config import HealthConfig
from parallel.health.watchdog import watch_rank

def never_ends():
    while True:
        time.sleep(0.1)

config = HealthConfig(hang_timeout_s=1, first_step_timeout_s=4, saving_timeout_s=60)
with watch_rank(config, Path(sys.argv[1])) as heartbeat:
    heartbeat.beat("saving", 3)
    time.sleep(2)
    heartbeat.beat("training", 4)
    if sys.argv[2] == "hang":
        never_ends()
    time.sleep(1.5)
    heartbeat.beat("training", 5)
    time.sleep(2)
print("done", flush=True)
"""


def watched(run: Path, ending: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WATCHED, str(run), ending]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="the watchdog needs Linux")
def test_the_monitor_kills_a_rank_that_hangs_and_says_where_it_was(tmp_path):
    done = watched(tmp_path, "hang")
    assert done.returncode == -9, done.stderr
    (folder,) = (path for path in (tmp_path / "hangs").iterdir() if path.is_dir())
    verdict = json.loads((folder / "verdict.json").read_text())
    assert (verdict["ranks"], verdict["kind"]) == ([0], "busy")
    assert "in step 4 (training)" in verdict["lines"][0]
    assert verdict["lines"][0] in done.stderr
    report = json.loads((folder / "rank-00000.json").read_text())
    assert any("in never_ends" in frame for frame in report["frames"])
    (event,) = (json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines())
    assert (event["kind"], event["ranks"], event["finding"]) == ("hang", [0], "busy")


@pytest.mark.skipif(sys.platform != "linux", reason="the watchdog needs Linux")
def test_a_rank_that_takes_no_longer_than_its_phase_may_is_left_alone(tmp_path):
    """A step may take longer than hang_timeout_s if the one before did."""
    done = watched(tmp_path, "end")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    assert list(tmp_path.iterdir()) == []


REPLACED = """
import os, signal, sys, time
from pathlib import Path
from parallel.health.config import HealthConfig
from parallel.health.watchdog import watch_rank

def monitors():
    return {int(pid) for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}

with watch_rank(HealthConfig(), Path(sys.argv[1])):
    (first,) = monitors()
    os.kill(first, signal.SIGKILL)
    ends_at = time.monotonic() + 60
    while not monitors() - {first} and time.monotonic() < ends_at:
        time.sleep(0.1)  # no beat: the main thread may wait in a collective
    assert monitors() - {first}, "nobody watches this rank"
assert not monitors(), "the new one has ended too"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the watchdog needs Linux")
def test_a_killed_monitor_is_replaced_without_a_beat(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", REPLACED, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stderr) == (0, "")


CANNOT_START = """
import sys, time
from pathlib import Path
from parallel.health import watchdog
from parallel.health.config import HealthConfig

run = Path(sys.argv[1])
python = run / "python"
python.write_text(f"#!/bin/sh\\necho >> {run}/starts\\nexit 3\\n")
python.chmod(0o700)
(run / "starts").touch()
sys.executable, watchdog.MONITOR_PAUSE_S = str(python), 0.02
with watchdog.watch_rank(HealthConfig(), run):
    ends_at = time.monotonic() + 1.5
    while time.monotonic() < ends_at or (run / "starts").stat().st_size < 3:
        time.sleep(0.1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the watchdog needs Linux")
def test_a_monitor_that_cannot_start_is_tried_ever_more_rarely_with_one_warning(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CANNOT_START, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("triaxial: the monitor of rank 0 ends as soon as it starts (status 3), so nobody watches")
    assert (tmp_path / "starts").stat().st_size <= 8, "0.02 s, 0.04 s, ... between them"
