"""Read plain, gzip, bzip2, xz and zstandard files as streams of small blocks, and notice damage.

Each step returns a bounded number of bytes, whatever the file claims. A decompression bomb costs time in proportion to
the part that is read, and no memory.
"""

import bz2
import lzma
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt.errors import import_extra

PACKINGS = ("", ".gz", ".bz2", ".xz", ".zst")  # endings that `unpacked_blocks` can read
_PACKED_BLOCK, _BLOCK = 1 << 16, 1 << 18
_ZSTD_BLOCK = 1 << 10  # packed; 4 bytes can encode a block of 128 KiB, so this becomes at most 32 MiB
_WINDOW_LIMIT = 1 << 27  # bytes of history that a zstandard or xz file may require, as `zstd --long` and `xz -9` do

_Read = Callable[[int], bytes]


class Broken(Exception):
    """Bytes that end too early (`truncated`), cannot be unpacked (`damaged`) or have no end in sight (`too_large`)."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class StreamPart:
    """A line or other part of a stream: its start, its length in bytes, and its bytes, or None if too many."""

    start: int
    n_bytes: int
    data: bytes | None


def unpacked_blocks(path: Path) -> Iterator[bytes]:
    """Yield a file's content in blocks of at most 256 KiB, unpacked by its ending; Broken where that fails."""
    with open(path, "rb", buffering=0) as file:
        if path.suffix == ".gz":
            yield from _gzip_blocks(file.read)
        elif path.suffix == ".bz2":
            yield from _stream_blocks(file.read, bz2.BZ2Decompressor, OSError)
        elif path.suffix == ".xz":
            yield from _stream_blocks(file.read, lambda: lzma.LZMADecompressor(memlimit=_WINDOW_LIMIT), lzma.LZMAError)
        elif path.suffix == ".zst":
            yield from _zstd_blocks(file.read)
        else:
            while block := file.read(_BLOCK):
                yield block


def split_stream(
    blocks: Iterable[bytes], separator: bytes, *, max_bytes: int, give_up_bytes: int, taken: list[int]
) -> Iterator[StreamPart]:
    """Yield the parts of a stream between separators, without the data of a part over `max_bytes`.

    `taken[0]` is the start of the part being read, which is lost if the stream breaks. Broken, `too_large`: a part
    exceeds `give_up_bytes`.
    """
    start, size, held, carry = 0, 0, [b""], b""  # the open part: its offset, its bytes so far, and its bytes in memory
    overlap = max(len(separator) - 1, 0)
    for block in blocks:
        first, *others = (carry + block).split(separator) if separator else [block]
        for other in others:
            yield _part(start, [*held, first], size + len(first), max_bytes)
            start += size + len(first) + len(separator)
            size, held, first = 0, [b""], other
        taken[0] = start
        carry = first[len(first) - overlap :] if overlap else b""  # a separator may continue in the next block
        if overlap:
            first = first[: len(first) - len(carry)]
        size += len(first)
        held = [*held, first] if size <= max_bytes else [b""]
        if size > give_up_bytes:
            raise Broken("too_large", f"more than {give_up_bytes} bytes without an end")
    if size + len(carry):
        yield _part(start, [*held, carry], size + len(carry), max_bytes)


def read_bytes(path: Path) -> bytes:
    """Return the whole content of a file that is trusted to fit in memory. Raises Broken."""
    return b"".join(unpacked_blocks(path))


def read_lines(path: Path, *, max_bytes: int) -> Iterator[bytes | None]:
    """Yield the lines of a file without their ends; None for a line over `max_bytes`. Raises Broken."""
    blocks = unpacked_blocks(path)
    for part in split_stream(blocks, b"\n", max_bytes=max_bytes, give_up_bytes=1 << 62, taken=[0]):
        yield part.data


def _part(start: int, held: list[bytes], size: int, max_bytes: int) -> StreamPart:
    return StreamPart(start, size, b"".join(held) if size <= max_bytes else None)


def _gzip_blocks(read: _Read) -> Iterator[bytes]:
    zlib: Any = import_extra("isal.isal_zlib", extra="data")
    packed = read(_PACKED_BLOCK)
    while packed:
        member, full = zlib.decompressobj(wbits=31), False
        while not member.eof:
            if not packed and not full:
                packed = read(_PACKED_BLOCK)
                if not packed:
                    raise Broken("truncated", "the file ends within a gzip member")
            try:
                block = member.decompress(packed, _BLOCK)
            except zlib.error as error:
                raise Broken("damaged", f"gzip: {error}") from None
            full = len(block) >= _BLOCK  # then more can follow without further input
            packed = member.unused_data if member.eof else member.unconsumed_tail
            if block:
                yield block
        packed = _past_padding(packed, read)


def _stream_blocks(read: _Read, new: Callable[[], Any], error: type[Exception]) -> Iterator[bytes]:
    """Yield the blocks of a bzip2 or xz file, one stream after the other."""
    packed = read(_PACKED_BLOCK)
    while packed:
        stream = new()
        while not stream.eof:
            if not packed and stream.needs_input:
                packed = read(_PACKED_BLOCK)
                if not packed:
                    raise Broken("truncated", "the file ends within a compressed stream")
            try:
                block = stream.decompress(packed, _BLOCK)
            except error as reason:
                raise Broken("damaged", str(reason)) from None
            packed = stream.unused_data if stream.eof else b""
            if block:
                yield block
        packed = _past_padding(packed, read)


def _zstd_blocks(read: _Read) -> Iterator[bytes]:
    zstandard: Any = import_extra("zstandard", extra="data")
    frame, packed = None, b""
    while packed := packed or read(_ZSTD_BLOCK):
        frame = frame or zstandard.ZstdDecompressor(max_window_size=_WINDOW_LIMIT).decompressobj()
        try:
            unpacked = frame.decompress(packed)
        except zstandard.ZstdError as error:
            raise Broken("damaged", str(error)) from None
        ended = frame.eof
        packed = frame.unused_data if ended else b""
        frame = None if ended else frame
        for start in range(0, len(unpacked), _BLOCK):
            yield unpacked[start : start + _BLOCK]
    if frame is not None:
        raise Broken("truncated", "the file ends within a zstandard frame")


def _past_padding(packed: bytes, read: _Read) -> bytes:
    """Skip the zeros with which some tools pad a file, and return the packed bytes after them."""
    while not packed or not packed[0]:
        packed = packed.lstrip(b"\0") or read(_PACKED_BLOCK)
        if not packed:
            break
    return packed
