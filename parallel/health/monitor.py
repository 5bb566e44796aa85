"""The monitor process of one rank: it watches the rank's heartbeat and acts when the rank hangs or dies.

watchdog.py starts one monitor per rank, with the MonitorSettings as JSON on stdin. The monitor ends with its rank. It
imports no torch. It counts time in its own short waits, so neither a change of the clock nor a suspended machine makes
a healthy rank look hung.
"""

import contextlib
import mmap
import os
import signal
import sys
import threading
import time

from gpt.files.json_text import decode_json
from gpt.telemetry.output import own_output
from parallel.health.hang_response import end_job, exit_monitor
from parallel.health.heartbeat import FAILED, LOST, RUNNING, SIZE, read_beat
from parallel.health.process_evidence import crash_report, exit_of_parent, is_alive, signal_of_death
from parallel.health.reports import Member, MonitorSettings, alarm_file

POLL_S = 0.25
LOOK_S = 1.0  # how often to look for the alarm of others, once the rank has been still for half of hang_timeout_s
EARLY_LOOK_S = 5.0  # interval before that: with NCCL, the alarm may be the only notice of a dead peer
LINGER_S = 2.0  # how long a monitor outlives a rank that failed


def main() -> None:
    """Read the settings from stdin, and watch until the rank ends."""
    own_output(waits=False)
    table = decode_json(sys.stdin.read())
    table["members"] = {int(rank): Member(**member) for rank, member in table["members"].items()}
    table["hosts"] = tuple((rank, host) for rank, host in table["hosts"])
    settings = MonitorSettings(**table)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # sent to the whole process group; the rank decides what to do
    watch(settings)
    exit_monitor(settings)


def watch(settings: MonitorSettings) -> None:
    """Watch the rank until it ends; end the job if the rank is overdue, lost its peers, or another raised the alarm."""
    shared = mmap.mmap(settings.beat_file, SIZE)
    wait_for_exit = exit_of_parent(settings.me.pid)
    still_s, looked_s, last, suspected, alarm = 0.0, 0.0, read_beat(shared), False, AlarmWatch(settings)
    before = time.monotonic()
    while not wait_for_exit(POLL_S):
        now, beat = time.monotonic(), read_beat(shared)
        passed_s, before = min(now - before, 2 * POLL_S), now
        still_s = still_s + passed_s if beat.number == last.number else 0.0
        last, looked_s = beat, looked_s + passed_s
        overdue = still_s > beat.allowed_s
        if beat.status == LOST or (overdue and suspected):
            return end_job(settings, shared, beat, still_s)
        suspected = overdue
        # hang_timeout_s, even if this rank has more time now: a rank with a shorter limit may be waiting for it
        late = still_s > settings.hang_timeout_s / 2
        if (late and looked_s >= LOOK_S) or min(still_s, looked_s) >= EARLY_LOOK_S:
            looked_s = 0.0
            alarm.look()
        if alarm.is_raised:
            return end_job(settings, shared, beat, still_s)
    _after_exit(settings, shared, still_s)


def _after_exit(settings: MonitorSettings, shared: mmap.mmap, still_s: float) -> None:
    """End the job if others need the rank that has ended, and print the stacks if it crashed."""
    died_of, beat = signal_of_death(settings.me.pid), read_beat(shared)
    if beat.status == FAILED:
        needed = _is_missed_by_others(settings)
    else:  # if our launcher was killed on purpose, a report is not useful
        launcher_lives = is_alive(settings.launcher_pid, settings.launcher_started_at)
        needed = beat.status in (RUNNING, LOST) and launcher_lives
    if needed and settings.world_size > 1:
        end_job(settings, shared, beat, still_s, died_of=died_of)
    print(crash_report(settings.stacks_file)[1], end="", file=sys.stderr, flush=True)


def _is_missed_by_others(settings: MonitorSettings) -> bool:
    """Return whether others raise an alarm soon after the end of a rank that failed and said why."""
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):  # close the rank's output, so that its readers see the end now
        os.dup2(quiet, stream)
    alarm, ends_at = AlarmWatch(settings), time.monotonic() + LINGER_S
    while time.monotonic() < ends_at and not alarm.is_raised:
        alarm.look()
        time.sleep(0.1)
    return alarm.is_raised


class AlarmWatch:
    """Checks in a thread whether another monitor of this start of the run has raised the alarm.

    The thread keeps a file system that does not answer from blocking the monitor.
    """

    def __init__(self, settings: MonitorSettings) -> None:
        self.file, self.is_raised = alarm_file(settings), False
        self._thread = threading.Thread(target=self._look, daemon=True)

    def look(self) -> None:
        """Start a check, unless an earlier one still waits for its answer."""
        if not self._thread.is_alive():
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()

    def _look(self) -> None:
        with contextlib.suppress(OSError):  # the directory is gone: each monitor works alone
            self.is_raised = self.file.exists()


if __name__ == "__main__":
    main()
