"""Start the ranks of a command on this machine, forward signals to them, and restart them after a failure.

`rank_group` runs one start. This module restarts it, and reports failures in one place.
"""

import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gpt.errors import ConfigError
from gpt.files.temporary import temporary_folder
from launch.processes.environment import JOB_SECRET, rank_environment
from launch.processes.failures import (
    INTERRUPTED,
    MISTAKE,
    SAVED_AFTER_SIGNAL,
    STOP_SIGNALS,
    describe_failure,
    first_failure,
    print_failure,
    reported_line,
    reported_status,
    shell_status,
    signal_name,
)
from launch.processes.rank_group import (
    INTERRUPTED_S,
    STOPPED_BY_INTERRUPT,
    GroupEnd,
    SignalInbox,
    run_group,
    signal_inbox,
)
from launch.processes.restarts import ONCE, Outage, Restart, RestartPolicy, RunProgress
from launch.processes.sealing import new_secret

GRACE_S = 120  # how long signalled ranks may take to save before they are killed


class _Job(NamedTuple):
    nproc: int
    command: list[str]
    settings: dict[str, str]
    folder: Path
    saved_file: Path
    grace_s: float
    resumable: bool


def launch_local(
    nproc: int,
    argv: Sequence[str],
    *,
    threads_per_process: int | None = None,
    module: str = "launch.main",
    grace_s: float = GRACE_S,
    restarts: RestartPolicy = ONCE,
    resumable: bool = False,
) -> int:
    """Run `python -m MODULE *argv` in `nproc` ranks on this machine and return the exit status for the shell.

    Rank 0 keeps the terminal; the output of the others is shown only if they fail. Signals reach every rank, which then
    has `grace_s` seconds to save. If a rank fails, all are ended and restarted as `restarts` allows. `resumable`: a
    command that a stop signal ended before it had anything to save may be started again.
    Status: 0; 2 for a user's mistake, printed once and never restarted; SAVED_AFTER_SIGNAL; 128 + n for a signal; else
    the status of the rank that failed first. Call it in the main thread.
    """
    if nproc < 1:
        raise ConfigError(f"--nproc {nproc} is invalid: the number of local processes must be 1 or more")
    in_checkout = Path.cwd() == Path(__file__).resolve().parents[2]
    # -P: a user's folder that happens to be called gpt must not shadow our package
    command = [*([] if in_checkout else ["-P"]), "-m", module, *argv]
    with signal_inbox() as inbox, temporary_folder() as folder:
        saved_file = folder.path / "saved"
        settings = rank_environment(nproc, threads_per_process, saved_file=saved_file) | {JOB_SECRET: new_secret()}
        job = _Job(nproc, command, settings, folder.path, saved_file, grace_s, resumable)
        status = _start_until_done(job, restarts, inbox)
        if status not in (0, MISTAKE, SAVED_AFTER_SIGNAL, INTERRUPTED):
            folder.keep()  # with the output of the ranks, to which the printed failure refers
        return status


def _start_until_done(job: _Job, restarts: RestartPolicy, inbox: SignalInbox) -> int:
    """Start the ranks, restart them after a failure as `restarts` allows, and return the exit status.

    Each start is a separate launch with a fresh store, which holds nothing of the dead ranks.
    """
    progress, outage, cause, count = RunProgress(restarts.last_step()), Outage(restarts.outage_s), "", 0
    for number in itertools.count():
        logs = job.folder / f"start_{number}"
        end = _run_once(job, logs, inbox)
        status = _status_without_restart(end, job)
        if status is not None:
            return status
        rank, failure = first_failure(end.failures)
        line, step = reported_line(failure), restarts.last_step()
        outage = outage.after(is_fault=line is not None and step <= progress.furthest, now=time.monotonic())
        if restarts.most and outage.pause_s and end.signal is None:
            _say(f"{line}\ntriaxial: {outage}")
            pause_s = outage.pause_s
        else:
            progress = progress.after(step)
            if count == restarts.most or progress.is_stuck or outage.is_over or end.signal is not None:
                break
            count, cause = count + 1, f"{describe_failure(rank, failure)} at step ~{step:,}"
            pause_s = progress.pause_s(restarts.pause_s)
            later = f" in {pause_s:.0f} s, because it got no further than the previous start" if pause_s else ""
            _say(f"triaxial: {cause}; restart {count} of {restarts.most}{later}")
            restart = Restart(count, restarts.most, cause)
            job.settings["TRIAXIAL_RESTART"] = json.dumps(dataclasses.asdict(restart))
        if numbers := inbox.wait(pause_s):
            _say(f"triaxial: stopped by {signal_name(numbers[0])} between two starts: nothing more is lost")
            return _status_of_signal(numbers[0], resumable=job.resumable)
    print_failure(rank, failure, nproc=job.nproc, log_dir=logs)
    if end.signal is not None:
        _say(f"triaxial: not restarted: the launcher got {signal_name(end.signal)}")
    elif restarts.most:
        why = progress.why_stuck if progress.is_stuck else f"it was restarted {count} times (--max-restarts)"
        before = f"\ntriaxial: the failure before: {cause}" if cause and outage.is_over else ""
        _say(f"triaxial: not restarted: {outage if outage.is_over else why}{before}")
    return shell_status(failure)


def _run_once(job: _Job, logs: Path, inbox: SignalInbox) -> GroupEnd:
    job.saved_file.unlink(missing_ok=True)
    return run_group(
        job.nproc,
        job.command,
        job.settings,
        log_dir=logs,
        grace_s=job.grace_s,
        interrupted_s=job.grace_s if job.resumable else INTERRUPTED_S,
        inbox=inbox,
    )


def _status_without_restart(end: GroupEnd, job: _Job) -> int | None:
    """The exit status, or None if a rank failed and may be restarted."""
    if not end.failures:
        return 0
    word = job.saved_file.read_text(encoding="utf-8").partition("\n")[0] if job.saved_file.exists() else ""
    if word.startswith("saved"):
        return SAVED_AFTER_SIGNAL  # all ranks have saved, however they ended afterwards
    if word == "interrupted":
        return INTERRUPTED  # saved too
    first = next(iter(end.failures.values()))  # the others follow from it
    if first.exitcode in STOPPED_BY_INTERRUPT or (end.signal is not None and end.signal not in STOP_SIGNALS):
        return INTERRUPTED
    if end.overdue:
        ranks = ", ".join(map(str, end.overdue))
        _say(f"triaxial: error: killed after {job.grace_s:g} s, not saved: rank {ranks}")
        return 128 + (end.signal or 0)
    if first.exitcode == SAVED_AFTER_SIGNAL:
        _say(f"triaxial: {word or 'stopped by a signal before the first step'}: nothing is lost")
        return SAVED_AFTER_SIGNAL
    if -first.exitcode in STOP_SIGNALS:  # before it could handle them: Python was still starting
        _say(f"triaxial: stopped by {signal_name(-first.exitcode)} at the start: nothing is lost")
        return _status_of_signal(-first.exitcode, resumable=job.resumable)
    failure = first_failure(end.failures)[1]
    mistake = reported_line(failure)
    if mistake is not None and reported_status(failure) == MISTAKE:
        _say(mistake)
        return MISTAKE
    return None


def _status_of_signal(number: int, *, resumable: bool) -> int:
    """The exit status if a signal came while there was nothing to save."""
    return SAVED_AFTER_SIGNAL if resumable and number in STOP_SIGNALS else 128 + number


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
