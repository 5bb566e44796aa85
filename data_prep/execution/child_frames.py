"""The protocol between a worker and its child process: framed messages over two pipes.

A child imports this file and not child_process.py, because each import costs it start-up time and memory.
"""

import resource
import struct
import sys
from pathlib import Path
from typing import BinaryIO

READY, MISTAKE, TEXT, END, FAILED, OUT_OF_MEMORY, CRASHED, NO_COLUMN = range(8)  # kinds of frames from a child
REPLY = struct.Struct("<BI")  # head of a frame from a child: one of these kinds, bytes of text after it
SIZE = struct.Struct("<I")  # head of a message to a child: bytes of text after it


def read_exactly(requests: BinaryIO, n_bytes: int) -> bytes:
    """Read the next bytes from the worker; exit if the pipe ends before that."""
    data = requests.read(n_bytes)
    if len(data) < n_bytes:
        sys.exit()
    return data


def read_text(requests: BinaryIO) -> str:
    """Read the next text from the worker, with its size before it."""
    return read_exactly(requests, SIZE.unpack(read_exactly(requests, SIZE.size))[0]).decode()


def reply(replies: BinaryIO, kind: int, text: str = "") -> None:
    """Send a frame to the worker; exit if the worker is gone."""
    data = text.encode("utf-8", "replace")
    try:
        replies.write(REPLY.pack(kind, len(data)) + data)
        replies.flush()
    except BrokenPipeError:
        sys.exit()


def limit_memory(n_bytes: int) -> None:
    """Limit this process to about `n_bytes` of resident memory.

    Linux can limit address space only, so the limit adds the space that is mapped but not resident now.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    statm = Path("/proc/self/statm")
    if not statm.exists():  # not Linux: these numbers are missing, and the limit would not hold
        return
    mapped, resident = (int(pages) * resource.getpagesize() for pages in statm.read_text().split()[:2])
    limit = mapped - resident + n_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
