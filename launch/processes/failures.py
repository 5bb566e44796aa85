"""Tells which rank of a local launch failed first and why; starts and ends nothing."""

import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MISTAKE = 2  # the exit status of a user's mistake: to start again would only repeat it


SAVED_AFTER_SIGNAL = 75  # the status of a run that saved after a signal and wants to be started again (EX_TEMPFAIL)


Failures = Mapping[int, Any]  # rank to torch elastic's ProcessFailure


def first_failure(failures: Failures) -> tuple[int, Any]:
    """The rank that failed before the others did, and how."""
    # when one rank has failed the launcher ends the others with SIGTERM, at which a training rank saves and stops
    asked_to_stop = (-int(signal.SIGTERM), SAVED_AFTER_SIGNAL)
    causes = {rank: failure for rank, failure in failures.items() if failure.exitcode not in asked_to_stop} or failures
    if any("no progress" in (watchdog_words(failure) or "") for failure in failures.values()):
        # a rank whose own monitor was silent, too, was killed by another's, which has told why
        causes = {rank: f for rank, f in causes.items() if f.exitcode != -signal.SIGKILL or watchdog_words(f)} or causes
    # the watchdog's kills follow from a fault that is another rank's; when all were killed so, its words tell whose
    causes = {rank: failure for rank, failure in causes.items() if not watchdog_words(failure)} or causes
    return min(causes.items(), key=_failed_at)


def watchdog_words(failure: Any) -> str | None:
    """Why the watchdog killed a rank; None where something else ended it."""
    recorded = failure.error_file_data.get("message")
    told = isinstance(recorded, dict) and recorded.get("extraInfo", {}).get("watchdog")
    return str(recorded["message"]) if told and failure.exitcode == -signal.SIGKILL else None


def mistake_of(failure: Any) -> str | None:
    """The line to print when this failure is a user's mistake, else None."""
    recorded = _recorded(failure)
    return recorded if failure.exitcode == MISTAKE else None


def in_words(rank: int, failure: Any) -> str:
    """'rank 1 was killed by SIGKILL', 'rank 1 failed with exit status 1 (ValueError: ..)', or the watchdog's words."""
    if words := watchdog_words(failure):
        return words.removeprefix("triaxial: ")
    lines = (_recorded(failure) or "").splitlines()
    if failure.exitcode < 0 and not lines:
        return f"rank {rank} was {exit_words(failure.exitcode)}"
    why = f" ({lines[0][:200]})" if lines else ""
    how = f" with {exit_words(failure.exitcode)}" if failure.exitcode > 0 else ""  # else it was ended on its way out
    return f"rank {rank} failed{how}{why}"


def explain(rank: int, failure: Any, *, nproc: int, log_dir: Path) -> None:
    """Tell the user which rank failed first, with the end of what it wrote, and where the others' output is."""
    if words := watchdog_words(failure):
        print(words, f"triaxial: output of the ranks: {log_dir}", sep="\n", file=sys.stderr, flush=True)
        return
    lines = [f"triaxial: error: rank {rank} of {nproc} failed first ({exit_words(failure.exitcode)})"]
    recorded = failure.error_file_data.get("message")
    trace = recorded.get("extraInfo", {}).get("py_callstack") if isinstance(recorded, dict) else None
    if rank == 0:
        lines += [f"[rank 0] {line}" for line in (trace or "").splitlines()]
        lines += [] if trace else ["triaxial: what it said is above"]
    for path in sorted(log_dir.glob(f"*/attempt_*/{rank}/stderr.log")):
        text = path.read_text(encoding="utf-8", errors="replace")
        lines += [f"[rank {rank}] {line}" for line in text.splitlines()[-40:]]
    print(*lines, f"triaxial: output of the other ranks: {log_dir}", sep="\n", file=sys.stderr, flush=True)


def shell_status(failure: Any) -> int:
    """The exit status that a shell would give for this failure."""
    return int(failure.exitcode) if failure.exitcode > 0 else 128 - int(failure.exitcode)


def exit_words(exitcode: int) -> str:
    """How a process ended, from its exit status, or minus the number of the signal that killed it."""
    if exitcode >= 0:
        return f"exit status {exitcode}"
    perhaps = ", perhaps for want of memory" if exitcode == -signal.SIGKILL else ""
    names = {known.value: known.name for known in signal.Signals}
    return f"killed by {names.get(-exitcode, f'signal {-exitcode}')}{perhaps}"


def _recorded(failure: Any) -> str | None:
    recorded = failure.error_file_data.get("message")
    return str(recorded["message"]) if isinstance(recorded, dict) and "message" in recorded else None


def _failed_at(item: tuple[int, Any]) -> tuple[bool, float, int]:
    """Order of failures, first cause first: a killed rank leaves no word, and its peers' broken connections follow."""
    rank, failure = item
    path = Path(failure.error_file)
    failed_at = path.stat().st_mtime if path.is_file() else float(failure.timestamp)
    return failure.exitcode > 0, failed_at, rank


_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)


_NO_SECRET_NAME = re.compile(r"_(FILE|PATH|DIR|FOLDER)$|TOKENIZER", re.IGNORECASE)


_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:/{1,2})[^/\s'\"]*@")  # up to the last @: one may stand in a password


_SIGNED = re.compile(
    r"([?&][^=&\s]*(?:sign|sig|token|secret|credential|passw|api_?key)[^=&\s]*=)[^&\s'\"]+", re.IGNORECASE
)


_LEAST = 8  # a shorter value would be found in innocent words


def without_secrets(text: str, environment: Mapping[str, str]) -> str:
    """The text without users and signatures in URLs, and with the names of variables in the place of their secrets."""
    text = _SIGNED.sub(r"\1***", _USER.sub(r"\1***@", text))
    for name, value in environment.items():
        if len(value) >= _LEAST and _SECRET_NAME.search(name) and not _NO_SECRET_NAME.search(name):
            text = text.replace(value, f"<{name}>")
    return text
