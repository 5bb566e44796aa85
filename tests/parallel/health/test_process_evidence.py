"""What can be seen of a process from outside, of real processes that stop, crash and run."""

import os
import signal
import subprocess
import sys
import time

from parallel.health.process_evidence import (
    crash_report,
    is_alive,
    main_frames,
    process_started_at,
    process_state,
    read_stacks,
    short_frame,
    signal_of_death,
)

STACKS = """Thread 0x00000000000000aa (most recent call first):
  <no Python frame>

Current thread 0x00000000000000bb (most recent call first):
  File "/a/b.py", line 3 in inner
  File "/a/c.py", line 9 in outer

Thread 0x00000000000000cc (most recent call first):
  File "/a/d.py", line 1 in other
"""


def test_the_main_threads_stack_is_found_in_any_position():
    assert main_frames(STACKS, 0xBB) == ["/a/b.py:3 in inner", "/a/c.py:9 in outer"]
    assert main_frames(STACKS, 0xCC) == ["/a/d.py:1 in other"]
    assert main_frames(STACKS, 0xAA) == []


def test_a_dead_process_is_not_alive_and_a_pid_used_again_is_another_process():
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


def test_a_running_process_writes_its_stacks_and_a_crashed_one_leaves_them():
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
    assert crash_report(file) == ("", "")
    child.stdin.write("\n")
    child.stdin.flush()
    assert child.stdout.readline() == "deaf\n"
    assert read_stacks(child.pid, signal_number=signal.SIGUSR2, file=file) == "", "the signal would have ended it"
    assert child.poll() is None
    child.communicate("\n")
    signal_name, stacks = crash_report(file)
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


def test_a_stopped_process_shows_where_it_stopped_and_not_where_it_continues():
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


def test_frames_are_shortened_to_two_parts_of_the_path():
    assert short_frame("/a/b/c/d.py:12 in f") == "c/d.py:12 in f"
