"""How a worker and its child processes talk: frames of a kind, a length and bytes. For both ends: it imports little."""

import resource
import struct
import sys
from pathlib import Path
from typing import BinaryIO

READY, MISTAKE, TEXT, END, FAILED, OUT_OF_MEMORY, CRASHED = range(7)  # what a frame from a child says
REPLY = struct.Struct("<BI")  # one of these, bytes of text after it
SIZE = struct.Struct("<I")


def read_exactly(requests: BinaryIO, n_bytes: int) -> bytes:
    """The next bytes from the worker; the child ends when there are none any more."""
    data = requests.read(n_bytes)
    if len(data) < n_bytes:
        sys.exit()
    return data


def read_text(requests: BinaryIO) -> str:
    """The next sized piece of text from the worker."""
    return read_exactly(requests, SIZE.unpack(read_exactly(requests, SIZE.size))[0]).decode()


def reply(replies: BinaryIO, kind: int, text: str = "") -> None:
    """A frame to the worker; the child ends when it is gone."""
    data = text.encode("utf-8", "replace")
    try:
        replies.write(REPLY.pack(kind, len(data)) + data)
        replies.flush()
    except BrokenPipeError:
        sys.exit()


def limit_memory(n_bytes: int) -> None:
    """Let this process grow to `n_bytes` of resident memory: address space beyond what is mapped and not in use now."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    statm = Path("/proc/self/statm")
    if not statm.exists():  # not Linux: nothing to reckon with, and no limit that would hold
        return
    mapped, resident = (int(pages) * resource.getpagesize() for pages in statm.read_text().split()[:2])
    limit = mapped - resident + n_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
