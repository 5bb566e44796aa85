"""Read the blocks of a damaged bzip2 stream one by one, as `bzip2recover` does. Each has its own mark and checksum."""

import bz2
from collections.abc import Iterator

from data_prep.readers.unpackers import BLOCK, Packed

_BLOCK_MARK, _END_MARK, _MARK_BITS, _SUM_BITS = 0x314159265359, 0x177245385090, 48, 32
_HEAD = b"BZh9"
_MAX_BLOCK_BITS = 8 * (2 << 20)  # packed; a block holds at most 900 kB before packing
_FIRST_WINDOW, _MAX_WINDOW = 1 << 12, 1 << 20
_MAX_BAD = 1000  # blocks in one stream; a hostile file may consist of marks
# A mark can start at any bit. Bytes 1 to 5 of the 7 around it are all its own: (those bytes, bit, mark, the 7 bytes).
_NEEDLES = tuple(
    ((mark << (8 - bit)).to_bytes(7, "big")[1:6], bit, mark == _END_MARK, mark << (8 - bit))
    for mark in (_BLOCK_MARK, _END_MARK)
    for bit in range(8)
)


def salvage_stream(packed: Packed, start: int, skip: int) -> Iterator[bytes | tuple[int, int]]:
    """Yield the good blocks of the stream at `start` without their first `skip` bytes, and go past the stream.

    A tuple stands for bad blocks: the packed bytes from the first offset to the second.
    """
    mark = _next_mark(packed, 8 * start)
    lost = None if mark == (8 * (start + len(_HEAD)), False) else 8 * start  # bit where bad bytes start
    n_bad = 0
    while mark is not None and n_bad < _MAX_BAD:
        bit, is_end = mark
        if is_end:
            packed.at = -(-(bit + _MARK_BITS + _SUM_BITS) // 8)
            if lost is not None:
                yield lost // 8, bit // 8
            return
        following = _next_mark(packed, bit + _MARK_BITS)
        data = None if following is None else _unpack(packed, bit, following[0])
        if data is None:
            lost, n_bad = bit if lost is None else lost, n_bad + 1
        elif lost is not None:
            yield lost // 8, bit // 8
            lost = None
        data = data or b""
        for at in range(skip, len(data), BLOCK):
            yield data[at : at + BLOCK]
        skip = max(skip - len(data), 0)
        mark = following
    packed.at = packed.n_bytes
    yield packed.n_bytes if lost is None else lost // 8, packed.n_bytes


def _unpack(packed: Packed, start: int, stop: int) -> bytes | None:
    """Unpack the block between two bits; None if it is bad."""
    n_bits = stop - start
    if not _MARK_BITS + _SUM_BITS <= n_bits <= _MAX_BLOCK_BITS:
        return None
    around = packed.look(start // 8, -(-stop // 8) - start // 8)
    bits = int.from_bytes(around, "big") >> (-stop % 8) & ((1 << n_bits) - 1)
    checksum = bits >> (n_bits - _MARK_BITS - _SUM_BITS) & ((1 << _SUM_BITS) - 1)
    n_bits += _MARK_BITS + _SUM_BITS
    bits = (bits << (_MARK_BITS + _SUM_BITS) | _END_MARK << _SUM_BITS | checksum) << (-n_bits % 8)
    try:
        return bz2.decompress(_HEAD + bits.to_bytes(-(-n_bits // 8), "big"))
    except (OSError, ValueError):
        return None


def _next_mark(packed: Packed, bit: int) -> tuple[int, bool] | None:
    """(bit, whether it ends the stream) of the first mark at or after `bit`, or None."""
    start, size = bit // 8, _FIRST_WINDOW
    while len(window := packed.look(start, size)) > _MARK_BITS // 8 - 1:
        padded = b"\0" + window + b"\0"
        found = [
            (8 * (start + at - 1) + shift, is_end)
            for inner, shift, is_end, whole in _NEEDLES
            if (at := _find(padded, inner, shift, whole, first=bit - 8 * start)) is not None
        ]
        if found:
            return min(found)
        start += len(window) - _MARK_BITS // 8 if len(window) == size else len(window)
        bit, size = max(bit, 8 * start), min(8 * size, _MAX_WINDOW)
    return None


def _find(data: bytes, inner: bytes, shift: int, whole: int, *, first: int) -> int | None:
    """Index in `data` of the first 7 bytes that hold the mark at `shift` bits, not before the bit `first` of it."""
    mask = ((1 << _MARK_BITS) - 1) << (8 - shift)
    at = data.find(inner)
    while at >= 1:
        group = int.from_bytes(data[at - 1 : at + 6].ljust(7, b"\0"), "big")
        if group & mask == whole and 8 * (at - 2) + shift >= first:
            return at - 1
        at = data.find(inner, at + 1)
    return None
