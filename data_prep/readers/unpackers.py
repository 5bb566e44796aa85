"""Unpack one gzip member, bzip2 or xz stream, or zstandard frame of a file in blocks of bounded size."""

import bz2
import lzma
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from data_prep.documents.quarantine import is_outside
from gpt.errors import import_extra

BLOCK = 1 << 18  # unpacked bytes, at most
_PACKED_BLOCK, _SEARCH = 1 << 16, 1 << 20
_ZSTD_BLOCK = 1 << 10  # packed; 4 bytes can encode a block of 128 KiB, so this becomes at most 32 MiB
_ZSTD_HEAD = 18  # bytes, at most
_MAX_ZSTD_WINDOW = 1 << 31  # of `zstd --long=31`; memory is used only as far as it is filled


class Broken(Exception):
    """Bytes that end too early (`truncated`), cannot be unpacked (`damaged`) or exceed a limit (`too_large`).

    `start`: offset of the part that is lost, where a reader knows it.
    """

    def __init__(self, reason: str, detail: str, start: int = 0) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.start = reason, detail, start


class ReaderFault(Exception):
    """A reader failed by its own fault, the cause. At most `unread_bytes` of the file were left."""

    def __init__(self, unread_bytes: int) -> None:
        super().__init__(f"the reader failed, {unread_bytes} bytes before the end of the file")
        self.unread_bytes = unread_bytes


class OpenFile(Protocol):
    """A file of `n_bytes` that is being read. `block_start`: offset of the last block that was read."""

    n_bytes: int
    block_start: int


@contextmanager
def reader_faults(file: OpenFile) -> Iterator[None]:
    """Turn an unexpected exception of a reader into a ReaderFault with the size of the rest of the file."""
    try:
        yield
    except BaseException as error:
        if is_outside(error):
            raise
        raise ReaderFault(file.n_bytes - file.block_start) from error


class Packed:
    """A file of packed bytes; `at` is the position of the next byte."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  closed in __exit__
        self.n_bytes = os.fstat(self._file.fileno()).st_size
        self.at = self.block_start = 0

    def __enter__(self) -> "Packed":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, n: int) -> bytes:
        """Return the next `n` bytes, fewer at the end of the file, and go past them."""
        self.block_start = self.at
        block = os.pread(self._file.fileno(), n, self.at)
        self.at += len(block)
        return block

    def look(self, start: int, n: int) -> bytes:
        """Return `n` bytes from `start` on, fewer at the end of the file."""
        return os.pread(self._file.fileno(), n, start)

    def find(self, mark: bytes, start: int) -> int | None:
        """Offset of the first `mark` from `start` on, or None."""
        while len(window := self.look(start, _SEARCH)) >= len(mark):
            found = window.find(mark)
            if found >= 0:
                return start + found
            start += len(window) - len(mark) + 1
        return None

    def skip_padding(self) -> None:
        """Go past zeros, with which some tools pad a file."""
        while block := self.read(_PACKED_BLOCK):
            if rest := block.lstrip(b"\0"):
                self.at -= len(rest)
                return


def gzip_member(packed: Packed) -> Iterator[bytes]:
    """Yield the blocks of the gzip member at `packed.at`, and go past it. Raises Broken."""
    zlib: Any = import_extra("isal.isal_zlib", extra="data")
    member, data, full = zlib.decompressobj(wbits=31), b"", False
    while not member.eof:
        if not data and not full:
            data = _more(packed, _PACKED_BLOCK, "a gzip member")
        try:
            block = member.decompress(data, BLOCK)
        except zlib.error as error:
            raise Broken("damaged", f"gzip: {error}") from None
        full = len(block) >= BLOCK  # then more can follow without further input
        data = member.unused_data if member.eof else member.unconsumed_tail
        if member.eof:
            packed.at -= len(data)
        if block:
            yield block


def bzip2_stream(packed: Packed) -> Iterator[bytes]:
    """Yield the blocks of the bzip2 stream at `packed.at`, and go past it. Raises Broken."""
    return _stream(packed, bz2.BZ2Decompressor(), OSError)


def xz_stream(packed: Packed, max_window_bytes: int) -> Iterator[bytes]:
    """Yield the blocks of the xz stream at `packed.at`, and go past it. Raises Broken."""
    return _stream(packed, lzma.LZMADecompressor(memlimit=max_window_bytes), lzma.LZMAError)


def zstd_frame(packed: Packed, max_window_bytes: int) -> Iterator[bytes]:
    """Yield the blocks of the zstandard frame at `packed.at`, and go past it. Raises Broken.

    A frame may ask for a longer window than allowed, as long as its content does not fill more of it.
    """
    zstandard: Any = import_extra("zstandard", extra="data")
    try:
        window = zstandard.get_frame_parameters(packed.look(packed.at, _ZSTD_HEAD)).window_size
    except zstandard.ZstdError:  # the decompressor's error gives the cause
        window = 0
    frame = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW).decompressobj()
    n_bytes = 0
    while not frame.eof:
        try:
            unpacked = frame.decompress(_more(packed, _ZSTD_BLOCK, "a zstandard frame"))
        except zstandard.ZstdError as error:
            raise Broken("damaged", str(error)) from None
        n_bytes += len(unpacked)
        if min(window, n_bytes) > max_window_bytes:
            raise Broken("too_large", f"input.max_window_bytes = {max_window_bytes} is too small: it needs {window}")
        if frame.eof:
            packed.at -= len(frame.unused_data)
        for start in range(0, len(unpacked), BLOCK):
            yield unpacked[start : start + BLOCK]


def _stream(packed: Packed, stream: Any, error: type[Exception]) -> Iterator[bytes]:
    while not stream.eof:
        data = _more(packed, _PACKED_BLOCK, "a compressed stream") if stream.needs_input else b""
        try:
            block = stream.decompress(data, BLOCK)
        except error as reason:
            large = "limit" in str(reason)
            hint = ". Raise input.max_window_bytes" if large else ""
            raise Broken("too_large" if large else "damaged", f"{reason}{hint}") from None
        if stream.eof:
            packed.at -= len(stream.unused_data)
        if block:
            yield block


def _more(packed: Packed, n: int, what: str) -> bytes:
    data = packed.read(n)
    if not data:
        raise Broken("truncated", f"the file ends within {what}")
    return data


Unpack = Callable[[Packed], Iterator[bytes]]
