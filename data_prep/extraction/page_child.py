"""The child process that turns pages into text for page_sandbox.py; it may be killed at any page.

It reads the configuration, then batches of pages. It reads each batch whole before it answers with one frame a page, so
that neither process waits for the other to empty a pipe.
"""

import signal
import struct
import sys
from typing import BinaryIO

from data_prep.execution.child_frames import (
    CRASHED,
    FAILED,
    MISTAKE,
    OUT_OF_MEMORY,
    READY,
    SIZE,
    TEXT,
    limit_memory,
    read_exactly,
    read_text,
    reply,
)
from data_prep.extraction.page_text import ExtractConfig, OutOfMemory, load_libraries, page_text
from gpt.errors import ConfigError
from gpt.files.json_text import decode_json

PAGE = struct.Struct("<II")  # bytes of the page's facts as JSON, bytes of its content


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer requests until the input ends."""
    config = ExtractConfig(**decode_json(read_text(requests)))
    try:
        load_libraries(config)
    except ConfigError as error:
        reply(replies, MISTAKE, str(error))
        return
    limit_memory(config.max_page_memory_bytes)
    reply(replies, READY)
    while head := requests.read(SIZE.size):
        pages = [_read_page(requests) for _ in range(SIZE.unpack(head)[0])]
        pages.reverse()
        while pages:
            signal.setitimer(signal.ITIMER_PROF, config.max_page_cpu_s)  # ends the process, even in C code
            kind, text = _answer(*pages.pop(), config)
            signal.setitimer(signal.ITIMER_PROF, 0)
            reply(replies, kind, text)


def _answer(content: bytes, charset: str | None, is_html: bool, config: ExtractConfig) -> tuple[int, str]:
    try:
        return TEXT, page_text(content, charset, is_html, config)
    except (MemoryError, OutOfMemory):
        return OUT_OF_MEMORY, ""
    except ValueError as error:
        return FAILED, str(error)[:200]
    except BaseException as error:  # a panic of a Rust library is not an Exception
        return CRASHED, type(error).__name__


def _read_page(requests: BinaryIO) -> tuple[bytes, str | None, bool]:
    n_facts, n_content = PAGE.unpack(read_exactly(requests, PAGE.size))
    charset, is_html = decode_json(read_exactly(requests, n_facts))
    return read_exactly(requests, n_content), charset, is_html


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
