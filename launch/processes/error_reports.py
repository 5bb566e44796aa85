"""Report a process's own error: a user's mistake in one line, a crash with its traceback, both without secrets.

Many ranks may fail at once, so the launcher or one rank prints, and the others only record what happened.
"""

import json
import shutil
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from gpt.errors import escaped, one_line
from gpt.files.json_text import decode_json
from launch.processes.environment import LauncherEnvironment, hide_secrets
from launch.processes.failures import INTERRUPTED, MISTAKE, SAVED_AFTER_SIGNAL

WORDS = ("", "started", "stopped", "failed", "saved", "interrupted", "done", "mistake")
RANK_0_FIRST_S = 5.0  # other ranks wait this long for local rank 0 to print the mistake, so that it appears once


def report_mistake(message: str, *, exit_status: int = MISTAKE) -> None:
    """Print a user's mistake once, however many ranks made it. Call it last, before exiting with `exit_status`.

    A plain process prints it. Under `launch_local` the launcher prints it. Under torchrun local rank 0 prints it; the
    other ranks print theirs only if rank 0 does not end the run within RANK_0_FIRST_S: then the mistake is theirs
    alone.
    """
    launcher = LauncherEnvironment.from_environment()
    if exit_status == MISTAKE:
        leave_word("mistake")
    message = one_line(hide_secrets(message))
    line = f"triaxial: error: {message}"
    if launcher.is_elastic:
        recorded = _write_error_file(launcher, line, exit_status=exit_status)
        if recorded and launcher.launcher_pid is not None:
            return
        if launcher.local_rank != "0":
            time.sleep(RANK_0_FIRST_S)
            line = f"triaxial: rank {launcher.rank}: error: {message}"
    print(line, file=sys.stderr, flush=True)


def report_crashes() -> None:
    """Record and print every uncaught exception of this process without secrets."""
    sys.excepthook = _record_and_print


def leave_word(word: str, *, run_directory: Path | None = None) -> None:
    """Write the last word of the run to `saved_file`. It begins with one of WORDS; the one later in WORDS is kept.

    torchrun hides the exit status of its ranks, so launch.torchrun and slurm/train.sbatch decide by this file. The
    run directory stands in its second line, which later words keep.
    """
    file = LauncherEnvironment.from_environment().saved_file
    if file is None or WORDS.index(word.split()[0]) < WORDS.index(last_word()):
        return
    with suppress(OSError):  # a full disk must not turn a stop into a failure
        file.parent.mkdir(parents=True, exist_ok=True)
        before = file.read_text(encoding="utf-8", errors="replace").split("\n")[1:] if file.exists() else []
        lines = [word, *([str(run_directory.absolute())] if run_directory is not None else filter(None, before))]
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def forget_stop() -> None:
    """Remove the word "stopped": another start has followed."""
    file = LauncherEnvironment.from_environment().saved_file
    if file is not None and last_word() == "stopped":
        with suppress(OSError):
            file.unlink()


def last_word() -> str:
    """The first word of the file of `leave_word`; "" if there is none."""
    file = LauncherEnvironment.from_environment().saved_file
    with suppress(OSError, UnicodeDecodeError, IndexError):
        word = file.read_text(encoding="utf-8").split()[0] if file is not None else ""
        return word if word in WORDS else ""
    return ""


def record_end(word: str, *, exit_status: int) -> None:
    """Record under torchrun why this rank ends with a status that a restart would only repeat."""
    launcher = LauncherEnvironment.from_environment()
    if launcher.is_elastic and launcher.launcher_pid is None:
        _write_error_file(launcher, word, exit_status=exit_status)


def status_before_restart() -> int | None:
    """The status to exit with at once, because it ended the previous start under the same torchrun for good.

    MISTAKE, SAVED_AFTER_SIGNAL or INTERRUPTED, of any rank of this node. None: a first start, or the ranks failed.
    """
    launcher = LauncherEnvironment.from_environment()
    if launcher.restart_count == 0 or launcher.error_file is None:
        return None
    attempt = launcher.error_file.parents[1]  # .../attempt_N/LOCAL_RANK/error.json
    before = attempt.with_name(f"attempt_{launcher.restart_count - 1}")
    for file in sorted(before.glob("*/error.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            status = decode_json(file.read_text(encoding="utf-8"))["message"]["extraInfo"]["exit_status"]
            if status in (MISTAKE, SAVED_AFTER_SIGNAL, INTERRUPTED):
                shutil.copyfile(file, launcher.error_file)  # for the next restart, and for torchrun's own report
                return int(status)
    return None


def _record_and_print(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    launcher = LauncherEnvironment.from_environment()
    text = escaped(hide_secrets("".join(traceback.format_exception(kind, error, trace))))
    recorded = _write_error_file(launcher, escaped(hide_secrets(f"{kind.__name__}: {error}")), details=text)
    if recorded and launcher.launcher_pid is not None and launcher.local_rank == "0":
        return  # the launcher prints it if it is the first failure, and not only the echo of a dead peer
    print(text, end="", file=sys.stderr, flush=True)


def _write_error_file(launcher: LauncherEnvironment, message: str, *, details: str = "", exit_status: int = 1) -> bool:
    """Write the file that tells torch elastic why and when this rank failed; False if there is none to write."""
    if launcher.error_file is None:
        return False
    extra = {"py_callstack": details, "timestamp": str(int(time.time())), "exit_status": exit_status}
    text = json.dumps({"message": {"message": message, "extraInfo": extra}})
    try:
        Path(launcher.error_file).write_text(text, encoding="utf-8")
    except OSError:  # a full disk, perhaps: the terminal still works
        return False
    return True
