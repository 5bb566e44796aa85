"""Who is to blame for a hang, on reports as monitors leave them; the processes behind them are in tests/launch."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt.errors import ConfigError
from parallel.agreement import PeerLost
from parallel.checkpoint.save import given_up
from parallel.errors import CheckpointError
from parallel.health.evidence import (
    Collective,
    Link,
    departures,
    is_alive,
    last_words,
    main_frames,
    process_started_at,
    process_state,
    read_stacks,
    signal_of_death,
)
from parallel.health.reports import Member, Watched, alarm_file, gather_reports, hang_folder, leads, parse_report
from parallel.health.verdict import Report, decide, tell
from parallel.health.watchdog import lost_peers


def collective(
    kind: str, number: int, *, group: str = "0", sizes: str = "[[8]] Float", done: bool = True
) -> Collective:
    return Collective(
        group=group, about=f"group{group}", kind=kind, number=number, sizes=sizes, done=done, created_ns=1
    )


def report(rank: int, **more) -> Report:
    fields = {"host": f"node{rank}", "pid": 100 + rank, "step": 9, "phase": "training", "still_s": 10.0}
    return Report(rank=rank, **{**fields, **more})


def waiting(rank: int, kind: str = "all_reduce", number: int = 40, **more) -> Report:
    open_one = collective(kind, number, done=False)
    return report(rank, **{"pending": open_one, "last": open_one, "counts": {"0": number}, **more})


def test_a_rank_that_waits_for_nobody_is_blamed_and_one_that_only_saves_beside_is_no_exception():
    saving = dataclasses.replace(collective("all_gather", 7, group="9", done=False), about="checkpoints")
    for pending in (None, saving):
        busy = report(2, pending=pending, frames=("/x/data.py:5 in read",))
        verdict = decide([waiting(0), waiting(1), busy, waiting(3)], world_size=4)
        assert (verdict.ranks, verdict.kind) == ((2,), "busy")
    in_a_receive = report(2, frames=("/venv/torch/distributed/distributed_c10d.py:7 in recv",))
    assert decide([waiting(0), in_a_receive], world_size=2).kind != "busy"


@pytest.mark.parametrize(
    ("odd", "ranks", "kind"),
    [
        (report(1, status="died", died_of="SIGKILL"), (1,), "died"),
        (report(1, status="failed", note="ValueError: no"), (1,), "failed"),
        (waiting(1, state="T"), (1,), "stopped"),
        (None, (1,), "silent"),
        (waiting(1, departures=("x came where y had come 9 times before",)), (1,), "skipped"),
        (waiting(1, kind="all_gather"), (1,), "skipped"),
        (waiting(1, number=38), (1,), "behind"),
        (waiting(1), (), "unclear"),
    ],
)
def test_the_odd_one_out_is_blamed(odd, ranks, kind):
    reports = [waiting(0), *([odd] if odd is not None else []), waiting(2), waiting(3)]
    verdict = decide(reports, world_size=4)
    assert (verdict.ranks, verdict.kind) == (ranks, kind)
    lines = tell(verdict, reports, world_size=4, folder="/run/hangs/now")
    assert ("rank 1" if ranks else "no rank to name") in lines[0]
    assert "in step 9" in lines[0]


def test_of_two_ranks_the_one_that_left_a_collective_out_is_blamed_though_the_other_aborts():
    culprit = report(0, status="lost its peers", departures=("all_reduce came where all_gather had come",))
    victim = report(1, status="died", died_of="SIGABRT")
    assert decide([culprit, victim], world_size=2).ranks == (0,)
    assert decide([culprit, dataclasses.replace(victim, died_of="SIGKILL")], world_size=2).ranks == (1,)
    assert decide([dataclasses.replace(culprit, departures=()), victim], world_size=2).ranks == (1,)


def test_dead_connections_show_the_machine_that_is_cut_off():
    def cut(rank: int, *others: int) -> Report:
        links = tuple(Link(f"10.0.0.{rank}:5", f"10.0.0.{other}:6", 100, 4) for other in others)
        return waiting(rank, dead_links=links, addresses=(f"10.0.0.{rank}",))

    verdict = decide([cut(0, 2), cut(1, 2), cut(2, 0, 1), cut(3)], world_size=4)
    assert (verdict.ranks, verdict.kind) == ((2,), "link")


def test_a_collective_left_out_is_a_departure_and_a_long_past_one_is_not():
    def step(number: int, *, without: str = "") -> list[Collective]:
        kinds = ["gather_a", "gather_b", "reduce_a", "reduce_b", "sum", "norm", "flags"]
        return [collective(kind, 10 * number + i) for i, kind in enumerate(kinds) if kind != without]

    usual = [c for number in range(6) for c in step(number)]
    assert departures(usual) == []
    found = departures([*usual, *step(6, without="sum")])
    assert any("norm" in words and "where sum" in words for words in found)
    assert departures([*step(0), *step(1), *step(2, without="sum"), *usual]) == []
    assert departures([*step(0), *step(1, without="sum")]) == [], "once is no custom"


STACKS = """Thread 0x00000000000000aa (most recent call first):
  <no Python frame>

Current thread 0x00000000000000bb (most recent call first):
  File "/a/b.py", line 3 in inner
  File "/a/c.py", line 9 in outer

Thread 0x00000000000000cc (most recent call first):
  File "/a/d.py", line 1 in other
"""


def test_the_main_threads_stack_is_found_wherever_it_stands():
    assert main_frames(STACKS, 0xBB) == ["/a/b.py:3 in inner", "/a/c.py:9 in outer"]
    assert main_frames(STACKS, 0xCC) == ["/a/d.py:1 in other"]
    assert main_frames(STACKS, 0xAA) == []


def test_a_dead_process_and_a_later_one_with_its_pid_are_told_from_it():
    child = subprocess.Popen([sys.executable, "-S", "-c", "import os; os.abort()"], stderr=subprocess.DEVNULL)
    started_at = process_started_at(child.pid)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert signal_of_death(child.pid) == "SIGABRT"
    assert not is_alive(child.pid, started_at)
    child.wait()
    assert signal_of_death(child.pid) == ""
    me = os.getpid()
    assert is_alive(me, process_started_at(me))
    assert not is_alive(me, started_at)


CRASH = """
import faulthandler, os, signal, sys
file = int(sys.argv[1])
faulthandler.register(signal.SIGUSR2, file=file)
faulthandler.enable(file=file)
def falls_over():
    os.abort()
print("ready", flush=True)
sys.stdin.readline()
faulthandler.unregister(signal.SIGUSR2)
print("deaf", flush=True)
sys.stdin.readline()
falls_over()
"""


def test_stacks_are_asked_of_a_process_that_answers_and_kept_of_one_that_crashes():
    file = os.memfd_create("stacks")
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", CRASH, str(file)],
        pass_fds=[file],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout.readline() == "ready\n"
    asked = (read_stacks(child.pid, signal_number=signal.SIGUSR2, file=file) for _ in range(30))  # a busy machine
    assert any('File "<string>", line 9' in stacks for stacks in asked)
    assert last_words(file) == ("", "")
    child.stdin.write("\n")
    child.stdin.flush()
    assert child.stdout.readline() == "deaf\n"
    assert read_stacks(child.pid, signal_number=signal.SIGUSR2, file=file) == "", "the signal would have ended it"
    assert child.poll() is None
    child.communicate("\n")
    signal_name, stacks = last_words(file)
    assert signal_name == "SIGABRT"
    assert "in falls_over" in stacks
    os.close(file)


STOPS = """
import faulthandler, os, signal, sys, threading, time
faulthandler.register(signal.SIGUSR2, file=int(sys.argv[1]))
for _ in range(8):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
def stops():
    os.kill(os.getpid(), signal.SIGSTOP)
def runs_on():
    while True:
        pass
stops()
runs_on()
"""


def test_a_stopped_process_shows_where_it_was_stopped_and_not_where_it_runs_on():
    file = os.memfd_create("stacks")
    child = subprocess.Popen([sys.executable, "-S", "-c", STOPS, str(file)], pass_fds=[file])
    try:
        ends_at = time.monotonic() + 60
        while process_state(child.pid) != "T":
            assert time.monotonic() < ends_at
            time.sleep(0.02)
        stacks = read_stacks(child.pid, signal_number=signal.SIGUSR2, file=file, stopped=True)
        while "in <module>" not in stacks:  # a busy machine
            assert time.monotonic() < ends_at
            time.sleep(0.1)
            stacks = os.pread(file, 1 << 20, 0).decode()
        assert "in stops" in stacks
        assert "in runs_on" not in stacks
    finally:
        child.kill()
        child.wait()
        os.close(file)


def watched(folder: Path, rank: int) -> Watched:
    members = tuple(Member(f"node{i}", "machine", 100 + i, "1") for i in range(2))
    rest = {"main_thread": 0, "recorder": "", "error_file": "", "launcher_pid": 1, "launcher_started_at": "1"}
    places = {"hangs": str(folder), "incarnation": "abc", "beat_file": 0, "stacks_file": 0, "hang_timeout_s": 9.0}
    return Watched(rank=rank, members=members, **rest, **places)


@pytest.mark.parametrize("links", [True, False])
def test_all_ranks_report_into_one_folder_with_links_and_without(tmp_path, monkeypatch, links):
    if not links:

        def refuse(*_):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    folders = {hang_folder(watched(tmp_path / "hangs", rank)) for rank in (1, 0)}
    assert len(folders) == 1
    assert alarm_file(watched(tmp_path / "hangs", 0)).read_text() == folders.pop().name
    assert len(list((tmp_path / "hangs").iterdir())) == 2


def leave_report(folder: Path, rank: int, **more) -> Path:
    path = folder / f"rank-{rank:05}.json"
    path.write_text(json.dumps(dataclasses.asdict(waiting(rank, **more))))
    return path


def test_the_lowest_rank_that_is_there_decides(tmp_path):
    leave_report(tmp_path, 1, status="died")
    for rank in (2, 3):
        leave_report(tmp_path, rank)
    assert [rank for rank in (2, 3) if leads(watched(tmp_path, rank), tmp_path)] == [2]
    leave_report(tmp_path, 0, status="died")  # whose monitor decides although its rank is dead
    assert [rank for rank in (0, 2, 3) if leads(watched(tmp_path, rank), tmp_path)] == [0]


def test_reports_are_read_as_they_come_and_each_once(tmp_path):
    reports, first = {}, leave_report(tmp_path, 1)
    gather_reports(watched(tmp_path, 0), tmp_path, reports)
    first.write_text("read already")
    leave_report(tmp_path, 0)
    gather_reports(watched(tmp_path, 0), tmp_path, reports)
    assert [reports[name].rank for name in sorted(reports)] == [0, 1]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_save_given_up_for_a_dead_peer_is_no_mistake_of_the_users(tmp_path):
    def fail(error, cause):
        try:
            raise error from cause
        except ConfigError as raised:
            return lost_peers(raised)

    lost = PeerLost("another rank died or cannot be reached (Connection closed by peer)")
    assert fail(given_up(tmp_path, lost), lost)
    assert not fail(CheckpointError(tmp_path, "not saved: the gloo of the disk"), OSError(28, "full"))
    assert not fail(ConfigError("a mistake"), None)


def test_a_report_survives_its_journey():
    links = (Link("10.0.0.1:5", "10.0.0.2:6", 100, 4),)
    sent = waiting(1, dead_links=links, addresses=("10.0.0.1",), frames=("/a/b.py:1 in f",), departures=("a", "b"))
    assert parse_report(json.loads(json.dumps(dataclasses.asdict(sent)))) == sent
