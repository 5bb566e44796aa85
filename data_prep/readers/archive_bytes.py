"""Read the unpacked bytes of an archive file, plain or gzip member by gzip member, with bounded memory.

After damaged bytes it searches the packed file for the next gzip member, so that one bad member costs no other.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.readers.unpackers import Broken
from gpt.errors import import_extra

_MAGIC = b"\x1f\x8b\x08"
_PACKED_BLOCK, _BLOCK = 1 << 16, 1 << 18
_WINDOW = 1 << 20
_REREAD_LIMIT = 16 << 30
_MAX_PROBES = 100_000  # positions that look like a gzip member; a hostile file may hold nothing else


@dataclass(frozen=True)
class RecordPosition:
    """Start of a record: file offset of its gzip member (0 in a plain file), and unpacked bytes before it in there."""

    member: int
    inner: int

    def __str__(self) -> str:
        return f"{self.member}+{self.inner}" if self.member and self.inner else str(self.member or self.inner)


class ArchiveBytes:
    """Reads forward through a file. In a packed one no read goes beyond its gzip member, until `next_member`."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  closed in __exit__
        self._zlib: Any = import_extra("isal.isal_zlib", extra="data")
        self.n_bytes = os.fstat(self._file.fileno()).st_size
        head = os.pread(self._file.fileno(), 16, 0)
        self.packed = head.startswith(_MAGIC[:2]) or (path.suffix == ".gz" and not head.upper().startswith(b"WARC/"))
        self._member = self._before = self._at = self._packed_at = 0  # see _begin
        self._buffer = self._packed = b""
        self._inflate: Any = None
        self._full = self._ended = False
        self.block_start = 0  # offset in the file of the last block that was read
        self._n_reread = 0  # bytes that were unpacked again
        self._begin(0)

    def __enter__(self) -> "ArchiveBytes":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def position(self) -> RecordPosition:
        """Position of the next byte."""
        return RecordPosition(self._member, self._before + self._at)

    def peek(self, n: int) -> bytes:
        """Return the next `n` bytes, fewer at the member's end, and stay before them."""
        while len(self._buffer) - self._at < n and (block := self._unpack()):
            self._before += self._at
            self._buffer, self._at = self._buffer[self._at :] + block, 0
        return self._buffer[self._at : self._at + n]

    def take(self, n: int) -> bytes:
        """Return the next `n` bytes, fewer at the member's end, and go past them."""
        blocks = []
        while n and (here := self.peek(1) and self._buffer[self._at : self._at + n]):
            blocks.append(here)
            self._at += len(here)
            n -= len(here)
        return b"".join(blocks)

    def skip(self, n: int, *, limit: int) -> int:
        """Skip `n` bytes, or to the member's end; return how many. Broken, `too_large`, after unpacking `limit`."""
        skipped = 0
        if not self.packed and n > len(self._buffer) - self._at:
            skipped = min(n, max(self.n_bytes - self.position.inner, 0))
            self._begin(0, self.position.inner + skipped)
            return skipped
        while skipped < n and self.peek(1):
            if skipped > limit:
                raise Broken("too_large", f"more than {limit} bytes unpacked")
            step = min(n - skipped, len(self._buffer) - self._at)
            self._at += step
            skipped += step
        return skipped

    def skip_to(self, mark: re.Pattern[bytes], *, overlap: int, limit: int) -> bool:
        """Go to one byte after the start of the next match of `mark` in this member; False if there is none.

        Matches are at most `overlap` bytes long. The search is fastest for a mark that starts with a fixed byte.
        """
        passed = 0
        while window := self.peek(_BLOCK):
            if found := mark.search(window):
                self._at += found.start() + 1
                return True
            step = len(window) - overlap if len(window) == _BLOCK else len(window)
            self._at += step
            passed += step
            if self.packed and passed > limit:
                raise Broken("too_large", f"more than {limit} bytes unpacked")
        return False

    def next_member(self) -> bool:
        """Begin the next member, after this one has been read to its end; False at the end of the file.

        Zeros that pad the file are no member. Broken: something else follows; `position` is then where it starts.
        """
        if not self.packed:
            return False
        assert self._ended, "the member is not at its end"
        ahead = self._packed
        start = self._packed_at - len(ahead)
        head = ahead[:3] if len(ahead) >= 3 else os.pread(self._file.fileno(), 3, start)
        if not head.strip(b"\0") and self._is_padding(start):
            self._begin(self.n_bytes)
            return False
        self._begin(start)
        self._packed, self._packed_at = ahead, start + len(ahead)
        if not _MAGIC.startswith(head):
            raise Broken("damaged", "no gzip member starts here")
        return True

    def find_member(self, start: int, begins: Callable[[bytes], object]) -> int | None:
        """Offset of the first gzip member in the file from `start` on whose first bytes `begins` accepts, or None."""
        probes, at, overlap = 0, start, len(_MAGIC) - 1
        while len(window := os.pread(self._file.fileno(), _WINDOW, at)) > overlap:
            found = window.find(_MAGIC)
            while found >= 0:
                probes += 1
                if begins(self._probe(at + found)):
                    return at + found
                if probes == _MAX_PROBES:
                    return None
                found = window.find(_MAGIC, found + 1)
            at += len(window) - overlap
        return None

    def seek(self, position: RecordPosition) -> None:
        """Continue from `position`. If its bytes are no longer in memory, its member is unpacked again up to there.

        Broken: so much was unpacked again that the file must be made to harm.
        """
        if position.member == self._member and self._before <= position.inner <= self._before + len(self._buffer):
            self._at = position.inner - self._before
            return
        self._begin(position.member)
        if self.packed and position.inner:
            self._n_reread += position.inner
            if self._n_reread > _REREAD_LIMIT:
                raise Broken("damaged", "too many bad records in one gzip member")
        self.skip(position.inner, limit=position.inner)

    def _begin(self, member: int, inner: int = 0) -> None:
        self._member, self._before, self._at, self._buffer = member, inner, 0, b""
        self._packed, self._packed_at = b"", member + inner
        self._inflate = self._zlib.decompressobj(wbits=31) if self.packed else None
        self._full = False  # the last step returned as much as it may: more can follow without further input
        self._ended = self.packed and member >= self.n_bytes

    def _read(self, n: int) -> bytes:
        self.block_start = self._packed_at
        block = os.pread(self._file.fileno(), n, self._packed_at)
        self._packed_at += len(block)
        return block

    def _unpack(self) -> bytes:
        """Return the next bytes of the member, at most a block; none at its end."""
        if not self.packed:
            return self._read(_BLOCK)
        block = b""
        while not block and not self._ended:
            if not self._packed and not self._full:
                self._packed = self._read(_PACKED_BLOCK)
                if not self._packed:
                    raise Broken("truncated", "the file ends within a gzip member")
            try:
                block = self._inflate.decompress(self._packed, _BLOCK)
            except self._zlib.error as error:
                raise Broken("damaged", f"gzip: {error}") from None
            self._full = len(block) >= _BLOCK
            self._ended = self._inflate.eof
            self._packed = self._inflate.unused_data if self._ended else self._inflate.unconsumed_tail
        return block

    def _probe(self, start: int) -> bytes:
        """Return the first bytes of the gzip member at `start`; none if there is no member."""
        try:
            head = os.pread(self._file.fileno(), 4096, start)
            return bytes(self._zlib.decompressobj(wbits=31).decompress(head, 1024))
        except self._zlib.error:
            return b""

    def _is_padding(self, start: int) -> bool:
        while block := os.pread(self._file.fileno(), _WINDOW, start):
            if block.strip(b"\0"):
                return False
            start += len(block)
        return True
