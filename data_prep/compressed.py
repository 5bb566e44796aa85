"""Opens plain, gzip and zstandard files as byte streams that notice when they were cut off; never unpacks to disk."""

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from gpt.errors import import_extra

# What a damaged or cut-off compressed file raises while it is read.
BROKEN: tuple[type[Exception], ...] = (EOFError, gzip.BadGzipFile, zlib.error)
_BLOCK = 1 << 17


def open_bytes(path: Path) -> BinaryIO:
    """The decompressed bytes of a file, by its ending (.gz, .zst, else plain); reading past damage raises BROKEN."""
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if path.suffix == ".zst":
        return cast(BinaryIO, io.BufferedReader(_ZstdFile(path), _BLOCK))
    return open(path, "rb")


def read_lines(stream: BinaryIO, *, max_bytes: int) -> Iterator[bytes | None]:
    """Lines without their newline; None for a line longer than `max_bytes`, which is skipped without being held."""
    while line := stream.readline(max_bytes + 1):
        if line.endswith(b"\n"):
            yield line[:-1]
        elif len(line) <= max_bytes:
            yield line  # the last line of a file without a final newline
        else:
            while (rest := stream.readline(_BLOCK)) and not rest.endswith(b"\n"):
                pass
            yield None


def gzip_members(path: Path, start: int) -> tuple[int, Literal["clean", "cut", "damaged"]]:
    """(whole gzip members from byte `start` on, how they end: with the file, in a member that the file cuts off, or in
    one that is damaged)."""
    whole = 0
    with open(path, "rb") as file:
        file.seek(start)
        block = file.read(_BLOCK)
        while block:
            member = zlib.decompressobj(wbits=31)
            while block and not member.eof:
                try:
                    member.decompress(block, _BLOCK)  # the text is not needed, so never more than a block of it
                except zlib.error:
                    return whole, "damaged"
                block = member.unconsumed_tail or member.unused_data or file.read(_BLOCK)
            if not member.eof:
                member.flush()  # all input is taken, but the end of a long match may still be inside
            if not member.eof:
                return whole, "cut"
            whole += 1
    return whole, "clean"


class _ZstdFile(io.RawIOBase):
    """zstandard's own reader returns a silent end of file for a frame that was cut off; this one raises EOFError."""

    def __init__(self, path: Path) -> None:
        self._new_frame: Any = import_extra("zstandard", extra="data").ZstdDecompressor
        self._error: Any = import_extra("zstandard", extra="data").ZstdError
        self._file = open(path, "rb")  # noqa: SIM115  closed in close()
        self._frame: Any = None
        self._packed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            # Small blocks bound what one step can expand to: a frame of zeros grows some thousand times.
            self._packed = self._packed or self._file.read(1 << 12)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("the zstandard stream ends before its frame does")
                return 0
            self._frame = self._frame or self._new_frame().decompressobj()
            try:
                self._ready = memoryview(self._frame.decompress(self._packed))
            except self._error as error:
                raise EOFError(f"damaged zstandard stream ({error})") from None
            self._packed = b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        n = min(len(buffer), len(self._ready))
        buffer[:n] = self._ready[:n]
        self._ready = self._ready[n:]
        return n

    def close(self) -> None:
        self._file.close()
        super().close()
