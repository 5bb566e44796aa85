"""Find the rank of a local launch that failed first, and describe its failure without secrets.

`rank_group` gives a RankFailure for each rank that failed: exit code, time, and the error file that the rank or its
watchdog wrote.
"""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MISTAKE = 2  # exit status of a user's mistake: a restart would only repeat it
SAVED_AFTER_SIGNAL = 75  # exit status of a run that saved after a signal and wants to be restarted (EX_TEMPFAIL)

LAST_LINES = 40  # of a failed rank's output
INTERRUPTED = 128 + signal.SIGINT  # exit status of a run that Ctrl-C ended: nobody starts it again
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)  # a training run saves and stops

Failures = Mapping[int, Any]  # rank to RankFailure


# ---- which rank failed first -----------------------------------------------------------------------------------------


def first_failure(failures: Failures) -> tuple[int, Any]:
    """The rank that failed before the others did, and its failure."""
    # The launcher ends the other ranks with SIGTERM, on which a training rank saves and stops.
    asked_to_stop = (-int(signal.SIGTERM), SAVED_AFTER_SIGNAL)
    causes = {
        rank: failure
        for rank, failure in failures.items()
        if failure.exitcode not in asked_to_stop or _recorded(failure)
    } or failures
    if any("no progress" in (watchdog_message(failure) or "") for failure in failures.values()):
        # If a killed rank has no message from its own monitor, the monitor of another rank killed it; that one has a
        # message.
        causes = {
            rank: f for rank, f in causes.items() if f.exitcode != -signal.SIGKILL or watchdog_message(f)
        } or causes
    # The watchdog kills because of another rank's fault; if it killed all ranks, its message names the faulty one.
    causes = {rank: failure for rank, failure in causes.items() if not watchdog_message(failure)} or causes
    return min(causes.items(), key=_order)


def _order(item: tuple[int, Any]) -> tuple[bool, float, int]:
    """Sort key, first cause first: a killed rank writes no error file, and the errors of its peers follow its death."""
    rank, failure = item
    path = Path(failure.error_file)
    failed_at = path.stat().st_mtime if path.is_file() else float(failure.timestamp)
    return failure.exitcode > 0, failed_at, rank


# ---- what it says ----------------------------------------------------------------------------------------------------


def watchdog_message(failure: Any) -> str | None:
    """Why the watchdog killed a rank; None if something else ended it."""
    recorded = failure.error_file_data.get("message")
    by_watchdog = isinstance(recorded, dict) and recorded.get("extraInfo", {}).get("watchdog")
    return str(recorded["message"]) if by_watchdog and failure.exitcode == -signal.SIGKILL else None


def reported_line(failure: Any) -> str | None:
    """Return the line to print for a user's mistake, or for a fault of the machine; None for a crash."""
    return str(failure.error_file_data["message"]["message"]) if reported_status(failure) is not None else None


def reported_status(failure: Any) -> int | None:
    """The exit status of a mistake or a fault of the machine, as the rank recorded it; None for a crash.

    A rank may be ended by a signal after its record and before its exit: its peers had ended with the same mistake.
    """
    recorded = failure.error_file_data.get("message")
    extra = recorded.get("extraInfo") if isinstance(recorded, dict) else None
    if not isinstance(extra, dict) or extra.get("py_callstack"):
        return None
    status = extra.get("exit_status")
    is_its_end = isinstance(status, int) and (failure.exitcode == status or failure.exitcode < 0)
    return status if is_its_end else None


def describe_failure(rank: int, failure: Any) -> str:
    """'rank 1 was killed by SIGKILL', 'rank 1 failed with exit status 1 (ValueError: ..)', or the watchdog's words."""
    if message := watchdog_message(failure):
        return message.removeprefix("triaxial: ")
    lines = (_recorded(failure) or "").splitlines()
    if failure.exitcode < 0 and not lines:
        return f"rank {rank} was {describe_exit(failure.exitcode)}"
    why = f" ({lines[0][:200]})" if lines else ""
    # A negative code here: a signal ended the rank after it had recorded its error.
    how = f" with {describe_exit(failure.exitcode)}" if failure.exitcode > 0 else ""
    return f"rank {rank} failed{how}{why}"


def print_failure(rank: int, failure: Any, *, nproc: int, log_dir: Path) -> None:
    """Print which rank failed first, the end of its output, and the folder with the output of the others."""
    if message := watchdog_message(failure):
        print(message, f"triaxial: output of the ranks: {log_dir}", sep="\n", file=sys.stderr, flush=True)
        return
    lines = [f"triaxial: error: rank {rank} of {nproc} failed first ({describe_exit(failure.exitcode)})"]
    if line := reported_line(failure):
        lines = [line]
    recorded = failure.error_file_data.get("message")
    trace = recorded.get("extraInfo", {}).get("py_callstack") if isinstance(recorded, dict) else None
    if rank == 0:
        lines += [f"[rank 0] {line}" for line in (trace or "").splitlines()]
        lines += [] if trace or line else ["triaxial: its output is above"]
    for path in sorted(log_dir.glob(f"{rank}/stderr.log")):
        text = path.read_text(encoding="utf-8", errors="replace")
        lines += [f"[rank {rank}] {line}" for line in last_lines(text)]
    print(*lines, f"triaxial: output of the other ranks: {log_dir}", sep="\n", file=sys.stderr, flush=True)


def last_lines(output: str) -> list[str]:
    """The last lines of a rank's output. After a crash, faulthandler's report of the thread that crashed comes first.

    The report lists all threads. The one that crashed may be far from the end, or run no Python code.
    """
    lines = output.splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("Fatal Python error: ")]
    if not starts:
        return lines[-LAST_LINES:]
    before, heading, report = lines[: starts[-1]], lines[starts[-1]], lines[starts[-1] + 1 :]
    first = next((i for i, line in enumerate(report) if line.startswith("Current thread ")), None)
    if first is None:
        return [f"{heading} (in a thread that runs no Python code)", "", *(before + report)[-LAST_LINES:]]
    end = next((i for i in range(first, len(report)) if not report[i].strip()), len(report))
    others = before + report[:first] + report[end:]
    return [heading, *report[first:end][:LAST_LINES], "", *others[-LAST_LINES:]]


def shell_status(failure: Any) -> int:
    """The exit status that a shell would give for this failure."""
    return int(failure.exitcode) if failure.exitcode > 0 else 128 - int(failure.exitcode)


def describe_exit(exitcode: int) -> str:
    """Describe how a process ended, from its exit status or the negative number of the signal that killed it."""
    if exitcode >= 0:
        return f"exit status {exitcode}"
    perhaps = ", perhaps out of memory" if exitcode == -signal.SIGKILL else ""
    return f"killed by {signal_name(-exitcode)}{perhaps}"


def handled_signals(*more: int) -> list[int]:
    """Return the signals of STOP_SIGNALS and `more` that need handlers. A signal that the caller ignores stays ignored,
    as by nohup or a shell's `&`; but slurm/train.sbatch ignores SIGUSR1 only until a process handles it."""
    always = (signal.SIGTERM, signal.SIGUSR1)
    numbers = (*STOP_SIGNALS, *more)
    return [int(number) for number in numbers if number in always or signal.getsignal(number) != signal.SIG_IGN]


@contextmanager
def signal_pipe(handler: Callable[[int, Any], None], *more: int) -> Iterator[int]:
    """Handle `handled_signals(*more)` inside the block; yield the end of a pipe from which the number of each is read.

    Both ends are closed after the block; a copy (os.dup) then reaches the end of the pipe. Main thread only.
    """
    received, sent = os.pipe()
    os.set_blocking(sent, False)
    wakeup_before = signal.set_wakeup_fd(sent, warn_on_full_buffer=False)
    before = {number: signal.signal(number, handler) for number in handled_signals(*more)}
    try:
        yield received
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
        signal.set_wakeup_fd(wakeup_before)
        os.close(sent)
        os.close(received)


def signal_name(number: int) -> str:
    """'SIGTERM' for 15."""
    names = {known.value: known.name for known in signal.Signals}
    return names.get(number, f"signal {number}")


def _recorded(failure: Any) -> str | None:
    recorded = failure.error_file_data.get("message")
    return str(recorded["message"]) if isinstance(recorded, dict) and "message" in recorded else None


# ---- secrets ---------------------------------------------------------------------------------------------------------

_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_NO_SECRET_NAME = re.compile(r"_(FILE|PATH|DIR|FOLDER)$|TOKENIZER", re.IGNORECASE)
# Both patterns take time linear in the text: an attempt ends before the earliest start of the next one. An error may
# quote a file of a stranger, and a log has many megabytes.
_USER = re.compile(r"(?<=[A-Za-z0-9+.-])(:/{1,2})[^/\s'\"]*@")  # up to the last @, which a password may contain
_PARAMETER = re.compile(r"([?&]([^=&?\s]++)=)[^&\s'\"]++")
_SIGNATURE = re.compile("sig|token|secret|credential|passw|api_?key", re.IGNORECASE)
_MIN_SECRET_LENGTH = 8  # a shorter value would also occur in ordinary words


def without_secrets(text: str, environment: Mapping[str, str]) -> str:
    """The text without credentials and signatures in URLs, and with secret values replaced by their variable's name."""
    text = _PARAMETER.sub(_without_signature, _USER.sub(r"\1***@", text))
    for name, value in environment.items():
        if len(value) >= _MIN_SECRET_LENGTH and _SECRET_NAME.search(name) and not _NO_SECRET_NAME.search(name):
            text = text.replace(value, f"<{name}>")
    return text


def _without_signature(found: re.Match[str]) -> str:
    return f"{found[1]}***" if _SIGNATURE.search(found[2]) else found[0]
