"""Run the commands of a demo as a user would type them, each in a process of its own."""

import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from gpt.errors import ConfigError
from gpt.files.json_text import decode_json
from gpt.files.regular import read_text
from launch.config.run_config import RunConfig


def is_finished(config: RunConfig) -> bool:
    """Whether the run of a demo has trained to its end."""
    try:
        summary = decode_json(read_text(config.run.directory / "train_summary.json"))
        return bool(summary["tokens_seen"] >= config.train.total_tokens)
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return False


def start_over_if_finished(config: RunConfig) -> None:
    """Delete a finished demo, so that it is trained again. An interrupted demo is resumed."""
    if is_finished(config):
        shutil.rmtree(config.run.directory)


def run_command(words: list[str]) -> int:
    """Print one `triaxial` command as a user would type it, and run it in a separate process.

    SIGTERM and SIGHUP are passed on, since training saves on them. A terminal sends Ctrl-C to the process itself. The
    demo ends once the process has ended, with 128 + the signal's number.
    """
    print("\n$ triaxial " + " ".join(map(shell_word, words)), flush=True)
    received: list[int] = []
    started: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if number != signal.SIGINT:
            for process in started:
                process.send_signal(number)

    handled = [n for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, pass_on) for number in handled}
    try:
        if not received:
            started.append(subprocess.Popen([sys.executable, "-m", "launch.main", *words]))
            for number in [n for n in received if n != signal.SIGINT]:  # came while the process was being started
                started[0].send_signal(number)
            started[0].wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 + received[0] if received else started[0].returncode


def shell_word(word: str) -> str:
    """Return a word as a user types it in bash."""
    return "$'\\n'" if word == "\n" else shlex.quote(word)


def read_report(path: Path) -> dict[str, Any]:
    try:
        report: dict[str, Any] = decode_json(read_text(path))
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing, although the step that writes it succeeded") from None
    return report
