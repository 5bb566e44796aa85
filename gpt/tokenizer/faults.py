"""Faults of tokenizer libraries on files that they cannot use: one line, in this process or in an earlier trial.

The Rust of `tokenizers` panics, which Python sees as an exception outside `Exception`, and on some files aborts the
whole process. A trial first loads a stranger's file in a separate process, within limits of time and memory.
"""

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from gpt.errors import ConfigError, one_line
from gpt.files.json_text import decode_json

_ROOT = Path(__file__).resolve().parents[2]
# Without `site` and the current folder, which may be the stranger's: a numpy.py there must not be imported.
_START = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from gpt.tokenizer.faults import _trial; _trial()"
_CPU_S, _MEMORY_BYTES = 120, 8 << 30  # the largest vocabularies need 3 s and 1 GiB
_WAIT_S = 600.0  # on a busy machine


class TokenizerFault(ConfigError):
    """A library cannot use a tokenizer's file, or cannot encode or decode with it."""


@contextmanager
def library_faults(words: str) -> Iterator[None]:
    """Turn every error and panic of a library into a TokenizerFault: `words`, then the library's reason."""
    try:
        yield
    except ConfigError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # Ctrl-C
        raise TokenizerFault(f"{words} ({type(error).__name__}: {one_line(str(error))[:500]})") from None


def try_tokenizer(path: Path, texts: Sequence[str]) -> None:
    """Load a tokenizer in a separate process, and encode and decode texts with it.

    ConfigError: as `load_tokenizer`; or the library crashes, hangs or needs too much memory.
    """
    paths = [str(_ROOT), *filter(None, sys.path)]
    command = [sys.executable, "-I", "-S", "-c", _START, json.dumps(paths)]
    request = json.dumps([str(Path(path).absolute()), list(texts)])
    try:
        done = subprocess.run(
            command, input=request.encode(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=_WAIT_S
        )
        fault = decode_json(done.stdout)
    except subprocess.TimeoutExpired:
        raise TokenizerFault(f"{path}: no tokenizer that can be used: its library hangs") from None
    except ValueError:  # no answer
        raise TokenizerFault(f"{path}: no tokenizer that can be used: its library {_end(done.returncode)}") from None
    if fault is not None:
        raise TokenizerFault(str(fault))


def _end(status: int) -> str:
    if -status in (signal.SIGXCPU, signal.SIGKILL):
        return f"takes more than {_CPU_S} s for a short text, or too much memory"
    return "crashes" if status < 0 else f"ends with status {status}"


def _trial() -> None:
    """Run in the trial's process: read the request from standard input, and answer null or a fault."""
    from gpt.tokenizer.tokenizers import load_tokenizer

    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    path, texts = decode_json(sys.stdin.buffer.read())
    fault = None
    with redirect_stdout(sys.stderr):
        try:
            with library_faults(f"{path}: no tokenizer that can be used"):
                tokenizer = load_tokenizer(Path(path))
                for ids in tokenizer.encode_batch(texts):
                    tokenizer.decode(ids)
        except ConfigError as error:
            fault = str(error)
    print(json.dumps(fault))
