"""Start the ranks of a command on this machine, forward signals to them, and restart them after a failure.

The work is torch elastic's; this module chooses its settings and reports failures in one place.
"""

import dataclasses
import itertools
import json
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from gpt.errors import ConfigError
from launch.processes.environment import JOB_SECRET, child_settings, launch_environment, quiet_elastic_logs
from launch.processes.failures import (
    MISTAKE,
    SAVED_AFTER_SIGNAL,
    describe_failure,
    first_failure,
    print_failure,
    reported_line,
    shell_status,
)
from launch.processes.restarts import ONCE, Outage, Restart, RestartPolicy, RunProgress
from launch.processes.sealing import BACKEND, new_secret, register_rendezvous

GRACE_S = 120  # how long signalled ranks may take to save before they are killed
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
FROM_KEYBOARD = (signal.SIGINT, signal.SIGQUIT)  # a user who presses Ctrl-C again does not want to wait


def launch_local(
    nproc: int,
    argv: Sequence[str],
    *,
    threads_per_process: int | None = None,
    module: str = "launch.main",
    grace_s: int = GRACE_S,
    restarts: RestartPolicy = ONCE,
) -> int:
    """Run `python -m MODULE *argv` in `nproc` ranks on this machine and return the exit status for the shell.

    Rank 0 keeps the terminal; the output of the others is shown only if they fail. The signals in FORWARDED reach every
    rank, which then has `grace_s` seconds to save. If a rank fails, all are ended and restarted as `restarts` allows.
    Status: 0; 2 for a user's mistake, printed once and never restarted; SAVED_AFTER_SIGNAL; 128 + n for a signal; else
    the status of the rank that failed first. Call it in the main thread.
    """
    if nproc < 1:
        raise ConfigError(f"--nproc {nproc} is invalid: the number of local processes must be 1 or more")
    from torch.distributed.elastic.multiprocessing import SignalException

    log_dir = Path(tempfile.mkdtemp(prefix="triaxial_"))
    saved_file = log_dir / "saved"
    in_checkout = Path.cwd() == Path(__file__).resolve().parents[2]
    # -P: a user's folder that happens to be called gpt must not shadow our package
    command = [*([] if in_checkout else ["-P"]), "-m", module, *argv]
    settings = child_settings(nproc, threads_per_process, saved_file=saved_file) | {JOB_SECRET: new_secret()}
    keep_logs = False
    try:
        with forward_signals(grace_s=grace_s):
            quiet_elastic_logs()
            status = _start_until_done(nproc, command, settings, restarts, log_dir=log_dir, grace_s=grace_s)
        keep_logs = status not in (0, MISTAKE, SAVED_AFTER_SIGNAL)
        return status
    except SignalException as error:
        return SAVED_AFTER_SIGNAL if saved_file.exists() else 128 + int(error.sigval)
    finally:
        if not keep_logs:
            shutil.rmtree(log_dir, ignore_errors=True)


def _start_until_done(
    nproc: int, command: list[str], settings: dict[str, str], restarts: RestartPolicy, *, log_dir: Path, grace_s: int
) -> int:
    """Start the ranks, restart them after a failure as `restarts` allows, and return the exit status.

    Each start is a separate launch with a fresh store, which holds nothing of the dead ranks.
    """
    progress, outage, cause, count = RunProgress(restarts.last_step()), Outage(restarts.outage_s), "", 0
    for number in itertools.count():
        failures = _start(nproc, command, settings, log_dir=log_dir / f"start_{number}", grace_s=grace_s)
        if not failures:
            return 0
        if {failure.exitcode for failure in failures.values()} == {SAVED_AFTER_SIGNAL}:
            return SAVED_AFTER_SIGNAL
        rank, failure = first_failure(failures)
        line, step = reported_line(failure), restarts.last_step()
        if line is not None and failure.exitcode == MISTAKE:
            print(line, file=sys.stderr, flush=True)
            return MISTAKE
        outage = outage.after(is_fault=line is not None and step <= progress.furthest, now=time.monotonic())
        if restarts.most and outage.pause_s:
            print(f"{line}\ntriaxial: {outage}", file=sys.stderr, flush=True)
            time.sleep(outage.pause_s)
            continue
        progress = progress.after(step)
        if count == restarts.most or progress.is_stuck or outage.is_over:
            break
        count, cause = count + 1, f"{describe_failure(rank, failure)} at step ~{step:,}"
        restart = Restart(count, restarts.most, cause)
        pause_s = progress.pause_s(restarts.pause_s)
        later = f" in {pause_s:.0f} s, because it got no further than the previous start" if pause_s else ""
        print(
            f"triaxial: {restart.cause}; restart {restart.count} of {restart.most}{later}", file=sys.stderr, flush=True
        )
        time.sleep(pause_s)
        settings |= {"TRIAXIAL_RESTART": json.dumps(dataclasses.asdict(restart))}
    print_failure(rank, failure, nproc=nproc, log_dir=log_dir / f"start_{number}")
    if restarts.most:
        why = progress.why_stuck if progress.is_stuck else f"it was restarted {count} times (--max-restarts)"
        before = f"\ntriaxial: the failure before: {cause}" if cause and outage.is_over else ""
        print(f"triaxial: not restarted: {outage if outage.is_over else why}{before}", file=sys.stderr, flush=True)
    return shell_status(failure)


def _start(
    nproc: int, command: list[str], settings: dict[str, str], *, log_dir: Path, grace_s: int
) -> Mapping[int, Any]:
    """Start all ranks and wait for their end; returns the failures by rank, empty if all succeeded."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    Path(settings["TRIAXIAL_SAVED_FILE"]).unlink(missing_ok=True)
    register_rendezvous()
    with launch_environment(settings):
        launch = elastic_launch(_launch_config(nproc, log_dir=log_dir, grace_s=grace_s), sys.executable)
        try:
            launch(*(word.replace("$", "$$") for word in command))  # elastic expands ${macros} in the command
        except ChildFailedError as error:
            return error.failures
    return {}


def _launch_config(nproc: int, *, log_dir: Path, grace_s: int) -> Any:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig

    others = dict.fromkeys(range(1, nproc), Std.ALL)
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=uuid.uuid4().hex,
        rdzv_backend=BACKEND,
        local_addr="127.0.0.1",  # this machine's name need not resolve
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(log_dir), redirects=others),
        signals_to_handle="",  # forward_signals has installed ours
        shutdown_timeout=grace_s,
    )


# ---- signals to the launcher -----------------------------------------------------------------------------------------


@contextmanager
def forward_signals(*, grace_s: float) -> Iterator[None]:
    """Inside the block, a signal raises torch elastic's SignalException: elastic passes it to its ranks and waits.

    With elastic's own handlers every further signal raises again: the second interrupts that wait, and the third ends
    the launcher and its ranks, however far they are with saving. Here further signals are ignored for `grace_s`. A
    SIGHUP that is ignored (nohup) stays ignored. Main thread only.
    """
    from torch.distributed.elastic.multiprocessing import SignalException

    first_at: float | None = None

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal first_at
        now = time.monotonic()
        if first_at is not None and number not in FROM_KEYBOARD and now < first_at + grace_s:
            return
        first_at = now if first_at is None else first_at
        raise SignalException(f"the launcher got signal {number}", sigval=signal.Signals(number))

    ignores_hangup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    numbers = [number for number in FORWARDED if not (ignores_hangup and number == signal.SIGHUP)]
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
