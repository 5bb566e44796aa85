"""Read plain, gzip, bzip2, xz and zstandard files as streams of small blocks, and continue after damage.

Each step returns a bounded number of bytes, whatever the file claims. A decompression bomb costs time in proportion to
the part that is read, and no memory. Up to HOLD_BYTES of a gzip member, bzip2 or xz stream or zstandard frame are held
back until its checksum has passed, so that text from a damaged stretch does not count as good.
"""

import codecs
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from data_prep.readers.bzip2_blocks import salvage_stream
from data_prep.readers.unpackers import (
    BLOCK,
    Broken,
    Packed,
    Unpack,
    bzip2_stream,
    gzip_member,
    xz_stream,
    zstd_frame,
)

PACKINGS = ("", ".gz", ".bz2", ".xz", ".zst")  # endings that `salvaged_blocks` can read
WINDOW_BYTES = 256 << 20  # of history that a zstandard or xz file may require; they are held in memory
HOLD_BYTES = 64 << 20  # a bzip2 block unpacks to 46 MB at most, so all of a bad one is held back
_SWALLOWED = 1 << 20
_BORDERS = ((b"\n\n", b"\n\r\n"), (b"\n",), (b". ", b"? ", b"! "), (b" ",))  # where a text is cut, the best first
_BLOCK_COST = 256  # overhead of a held block in memory, in bytes
# Limits for positions after damage that look like the start of a member, and for bytes unpacked there in vain.
_MAX_TRIES, _MAX_WASTE = 10_000, 4 << 30


@dataclass(frozen=True)
class Gap:
    """A stretch of a file that cannot be read, of `n_bytes` packed bytes, and why.

    `start` is an offset in the content that was read; the content of gaps does not count.
    """

    reason: str
    detail: str
    n_bytes: int
    start: int = 0


@dataclass(frozen=True)
class StreamPart:
    """A line or other part of a stream: its start, its length in bytes, and its bytes, or None if too many.

    `cut`: a gap is before it, so its beginning may be missing.
    """

    start: int
    n_bytes: int
    data: bytes | None
    cut: bool = False


def salvaged_blocks(packed: Packed, ending: str, *, max_window_bytes: int = WINDOW_BYTES) -> Iterator[bytes | Gap]:
    """Yield a file's content in blocks of at most 256 KiB, unpacked by its ending, and a gap for each bad stretch.

    After damage, it continues with the next gzip member, bzip2 block, xz stream or zstandard frame.
    """
    if ending == ".gz":
        yield from _members(packed, gzip_member, b"\x1f\x8b\x08")
    elif ending == ".xz":
        yield from _members(packed, partial(xz_stream, max_window_bytes=max_window_bytes), b"\xfd7zXZ\0")
    elif ending == ".zst":
        yield from _members(packed, partial(zstd_frame, max_window_bytes=max_window_bytes), b"\x28\xb5\x2f\xfd")
    elif ending == ".bz2":
        yield from _bzip2_streams(packed)
    else:
        while block := packed.read(BLOCK):
            yield block


def unpacked_blocks(path: Path) -> Iterator[bytes]:
    """Yield a file's content as `salvaged_blocks` does; Broken at the first gap."""
    with Packed(path) as packed:
        for block in salvaged_blocks(packed, path.suffix):
            if isinstance(block, Gap):
                raise Broken(block.reason, block.detail)
            yield block


@dataclass(frozen=True)
class _Member:
    """The end of a member: its error if any, the packed position and the blocks held back then, the bytes before."""

    error: Broken | None
    held_from: int
    held: list[bytes]
    n_out: int


def _hold_back(packed: Packed, unpack: Unpack, gap: Gap | None) -> Generator[bytes | Gap, None, _Member]:
    """Yield the blocks of a member, with the gap before the first one, and return the last HOLD_BYTES of them."""
    held: deque[tuple[int, bytes]] = deque()  # packed position before each block
    n_held, n_out, at, error = 0, 0, packed.at, None
    try:
        for block in unpack(packed):
            held.append((at, block))
            n_held, at = n_held + len(block) + _BLOCK_COST, packed.at
            while n_held > HOLD_BYTES:
                if gap is not None and not n_out:
                    yield gap
                out = held.popleft()[1]
                n_out, n_held = n_out + len(out), n_held - len(out) - _BLOCK_COST
                yield out
    except Broken as broken:
        error = broken
    return _Member(error, held[0][0] if held else at, [block for _, block in held], n_out)


def _members(packed: Packed, unpack: Unpack, mark: bytes) -> Iterator[bytes | Gap]:
    """Yield the blocks of all members, each of which starts with `mark`, and the gaps."""
    gap: Gap | None = None  # open: its `start` is the packed position at which it starts
    n_tries = n_wasted = 0
    while packed.at < packed.n_bytes:
        start = packed.at
        member = yield from _hold_back(packed, unpack, _closed(gap, start))
        gap, error = None if member.n_out else gap, member.error
        following = _next_start(packed, error, start, mark)
        cut = error is not None and error.reason == "truncated" and following is None
        # The end of a member that is cut off, or too large, is missing. The rest is not known to be bad.
        if error is None or (gap is None and (cut or error.reason == "too_large")):
            if gap is not None:
                yield _closed(gap, start) or gap
                gap = None
            yield from member.held
        if error is None:
            packed.skip_padding()
            continue
        if gap is None:
            reason = error.reason if error.reason != "truncated" or cut else "damaged"
            kept = f"; {member.n_out} bytes of it were kept, of unknown quality" if member.n_out else ""
            if reason == "damaged":
                gap = Gap(reason, error.detail + kept, 0, member.held_from)
            else:
                gap = Gap(reason, error.detail, 0, packed.at)
        n_tries, n_wasted = n_tries + 1, n_wasted + sum(map(len, member.held))
        if following is None or n_tries > _MAX_TRIES or n_wasted > _MAX_WASTE:
            following = packed.n_bytes
        packed.at = following
    if gap is not None:
        yield _closed(gap, packed.n_bytes) or gap


def _next_start(packed: Packed, error: Broken | None, start: int, mark: bytes) -> int | None:
    """Offset of the next member to try after one that started at `start` and failed, or None.

    A member that reaches the file's end without an error has hidden few others, if any.
    """
    if error is None:
        return None
    return packed.find(mark, start + 1 if error.reason != "truncated" else max(start + 1, packed.at - _SWALLOWED))


def _closed(gap: Gap | None, end: int) -> Gap | None:
    return None if gap is None else replace(gap, n_bytes=end - gap.start, start=0)


def _bzip2_streams(packed: Packed) -> Iterator[bytes | Gap]:
    while packed.at < packed.n_bytes:
        start = packed.at
        stream = yield from _hold_back(packed, bzip2_stream, None)
        if stream.error is None:
            yield from stream.held
        else:
            for block in salvage_stream(packed, start, stream.n_out):
                if isinstance(block, bytes):
                    yield block
                    continue
                cut = stream.error.reason == "truncated" and block[1] == packed.n_bytes
                yield Gap("truncated" if cut else "damaged", stream.error.detail, block[1] - block[0])
        packed.skip_padding()


def split_stream(
    blocks: Iterable[bytes | Gap], separator: bytes, *, max_bytes: int, give_up_bytes: int
) -> Iterator[StreamPart | Gap]:
    """Yield the parts of a stream between separators, without the data of a part over `max_bytes`.

    A gap ends the open part, which is lost, and comes out with the start of that part. Broken, `too_large`: a part
    exceeds `give_up_bytes`; the error has its start.
    """
    start, size, held, carry = 0, 0, [b""], b""  # the open part: its offset, its bytes so far, and its bytes in memory
    overlap, cut = max(len(separator) - 1, 0), False
    for block in blocks:
        if isinstance(block, Gap):
            yield replace(block, start=start)
            start, size, held, carry, cut = start + size + len(carry), 0, [b""], b"", True
            continue
        first, *others = (carry + block).split(separator) if separator else [block]
        for other in others:
            yield _part(start, [*held, first], size + len(first), max_bytes, cut=cut)
            start += size + len(first) + len(separator)
            size, held, first, cut = 0, [b""], other, False
        carry = first[len(first) - overlap :] if overlap else b""  # a separator may continue in the next block
        if overlap:
            first = first[: len(first) - len(carry)]
        size += len(first)
        held = [*held, first] if size <= max_bytes else [b""]
        if size > give_up_bytes:
            raise Broken("too_large", f"more than {give_up_bytes} bytes without an end", start)
    if size + len(carry):
        yield _part(start, [*held, carry], size + len(carry), max_bytes, cut=cut)


def cut_stream(blocks: Iterable[bytes | Gap], n_bytes: int, encoding: str = "") -> Iterator[StreamPart | Gap]:
    """Yield the parts of a text, each of `n_bytes` to twice as many bytes; the last one may be shorter.

    A part ends behind a paragraph, or else a line, a sentence, a word or a letter. A gap ends the open part.
    `encoding`: of a text that is not UTF-8.
    """
    start, held, cut = 0, bytearray(), False
    for block in blocks:
        if isinstance(block, Gap):
            if held:
                yield StreamPart(start, len(held), bytes(held), cut)
            start, cut = start + len(held), True
            yield replace(block, start=start)
            held.clear()
            continue
        held += block
        at = 0
        while len(held) - at > 2 * n_bytes:
            end = _border(held, at, n_bytes, encoding)
            yield StreamPart(start, end - at, bytes(held[at:end]), cut)
            start, at, cut = start + end - at, end, False
        del held[:at]
    if held:
        yield StreamPart(start, len(held), bytes(held), cut)


def _border(text: bytearray, start: int, n_bytes: int, encoding: str) -> int:
    """Return where to cut a text in an encoding that keeps ASCII: `n_bytes` to twice as many behind `start`."""
    first, last = start + n_bytes, start + 2 * n_bytes
    for kind in _BORDERS:
        found = [at + len(mark) for mark in kind if (at := text.find(mark, first, last)) >= 0]
        if found:
            return min(found)
    return last - _cut_letter(bytes(text[start:last]), encoding)


def _cut_letter(part: bytes, encoding: str) -> int:
    """Return how many bytes at the end of a part belong to a letter that goes on behind it."""
    for name, errors in (("utf-8", "strict"), (encoding, "strict"), ("utf-8", "replace")):
        if name:
            decoder = codecs.getincrementaldecoder(name)(errors)
            with suppress(UnicodeDecodeError):
                decoder.decode(part)
                return len(decoder.getstate()[0])
    return 0


def recoded(blocks: Iterable[bytes | Gap], encoding: str) -> Iterator[bytes | Gap]:
    """Yield a stream of UTF-16 or UTF-32 as UTF-8. Broken units become the byte 0xFF, which is not UTF-8."""
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    for block in blocks:
        if isinstance(block, Gap):
            yield block
            decoder.reset()
        else:
            yield decoder.decode(block).encode("utf-8", "replace").replace(b"\xef\xbf\xbd", b"\xff")
    if rest := decoder.decode(b"", final=True):
        yield b"\xff" * len(rest)


def read_bytes(path: Path) -> bytes:
    """Return the whole content of a file that is trusted to fit in memory. Raises Broken."""
    return b"".join(unpacked_blocks(path))


def read_lines(path: Path, *, max_bytes: int) -> Iterator[bytes | None]:
    """Yield the lines of a file without their ends; None for a line over `max_bytes`. Raises Broken."""
    for part in split_stream(unpacked_blocks(path), b"\n", max_bytes=max_bytes, give_up_bytes=1 << 62):
        if isinstance(part, StreamPart):
            yield part.data


def _part(start: int, held: list[bytes], size: int, max_bytes: int, *, cut: bool) -> StreamPart:
    return StreamPart(start, size, b"".join(held) if size <= max_bytes else None, cut)
