"""What several tests of this folder need."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from gpt.tokenizer.tokenizers import Tokenizer, load_tokenizer, train_sentencepiece

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """That knows the words of GPT-3's questions. Modules about something else have one of their own."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    text = "Q: What is 12 plus 34? A: 46. Please unscramble the letters into a word, and write that word: the rest\n"
    train_sentencepiece(
        iter([text, "another text with other letters, numbers 567890 and = signs"]), path, vocab_size=330
    )
    return load_tokenizer(path)


@pytest.fixture(scope="session")
def python() -> Any:
    """Runs Python in a process of its own."""

    def run(code: str, *arguments: object, environment: dict[str, str] | None = None) -> str:
        """Standard output of a Python process in the repository; its standard error must be empty."""
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=100,
            cwd=REPOSITORY,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


@pytest.fixture(scope="session")
def on_terminal() -> Any:
    """Runs Python on a terminal of its own."""

    def run(code: str, *arguments: object, columns: int = 160, environment: dict[str, str] | None = None) -> str:
        """What a Python process in the repository writes to a terminal of its own."""
        leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        base = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            cwd=REPOSITORY,
            env={**base, **(environment or {})},
            start_new_session=True,
        )
        os.close(follower)
        chunks = []
        try:
            while chunk := os.read(leader, 4096):
                chunks.append(chunk)
        except OSError:
            pass  # Linux's word for the end of a terminal's output
        finally:
            os.close(leader)
        assert process.wait(timeout=100) == 0
        return b"".join(chunks).decode()

    return run
