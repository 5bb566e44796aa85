"""Checksums beside token files: PREFIX.sums says what each block of PREFIX.bin and PREFIX.idx holds; it mends nothing.

Layout, little-endian: magic, bytes of .bin, bytes of .idx, the CRC-32 of these; then the CRC-32 (u32) of each block of
4 KiB of .bin, and of each of .idx; the last block of a file may be shorter. A block is a page, so that comparing makes
a disk read nothing that it would not read anyway. The file takes a thousandth of what it describes.
"""

import errno
import os
import struct
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from gpt.errors import ConfigError

BLOCK_BYTES = 4096
MAGIC = b"TRIXSUM1"
_HEADER = struct.Struct("<8sQQI")  # magic, bytes of .bin, bytes of .idx, CRC-32 of the 24 bytes before it
_READ_BYTES = 1 << 20

Sums = npt.NDArray[np.uint32]


class DamagedTokens(ConfigError):
    """A part of a token file is not what was written, or cannot be read."""


class SummedFile:
    """A new file that sums up each block of what is written to it. Closed by leaving its `with`."""

    def __init__(self, path: Path) -> None:
        # x: whatever has this name already, a link too, is left alone
        self._file: BinaryIO = open(path, "xb", buffering=1 << 20)  # noqa: SIM115  closed in __exit__
        self._sums: list[int] = []
        self._rest = b""  # of the block that is not full yet
        self.n_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: TracebackType | None) -> None:
        self._file.close()  # on a full disk this flushes, and fails, once more

    def write(self, data: Any) -> None:
        """Append a buffer of bytes."""
        view = memoryview(data).cast("B")
        self._file.write(view)
        self.n_bytes += len(view)
        missing = BLOCK_BYTES - len(self._rest)
        if len(view) < missing:
            self._rest += view
            return
        self._sums.append(zlib.crc32(view[:missing], zlib.crc32(self._rest)))
        end = missing + (len(view) - missing) // BLOCK_BYTES * BLOCK_BYTES
        self._sums.extend(_sums_of(view[missing:end]))
        self._rest = bytes(view[end:])

    def sync(self) -> None:
        """Have all of it on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    @property
    def sums(self) -> Sums:
        """Of all that was written (blocks,)."""
        return np.array([*self._sums, *_sums_of(memoryview(self._rest))], dtype="<u4")


class TokenSums:
    """The open PREFIX.sums. Threads and forked processes may share it."""

    def __init__(self, prefix: Path) -> None:
        self.path = sums_path(prefix)
        self._file = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        head, size = os.pread(self._file, _HEADER.size, 0), os.fstat(self._file).st_size
        again = f"write it again with `triaxial prepare checksum --replace {prefix}`"
        if len(head) < _HEADER.size or not head.startswith(MAGIC):
            raise ConfigError(f"{self.path}: not a file of checksums of token files; {again}")
        _, bin_bytes, idx_bytes, own = _HEADER.unpack(head)
        n_sums = _blocks(bin_bytes) + _blocks(idx_bytes)
        if own != zlib.crc32(head[:-4]) or size != _HEADER.size + 4 * n_sums:
            raise ConfigError(f"{self.path}: damaged; copy it again, or, when the token files are good, {again}")
        self.files = {
            ".bin": FileSums(self, Path(f"{prefix}.bin"), bin_bytes, first=0),
            ".idx": FileSums(self, Path(f"{prefix}.idx"), idx_bytes, first=_blocks(bin_bytes)),
        }

    def read(self, first: int, n: int) -> Sums:
        """Sums first to first + n - 1 of all."""
        data = os.pread(self._file, 4 * n, _HEADER.size + 4 * first)
        if len(data) != 4 * n:
            raise DamagedTokens(f"{self.path} has become shorter since it was opened; copy it again")
        return np.frombuffer(data, dtype="<u4")


class FileSums:
    """Those of one of the two files."""

    def __init__(self, sums: TokenSums, path: Path, n_bytes: int, *, first: int) -> None:
        self._sums, self.path, self.n_bytes, self._first = sums, path, n_bytes, first

    def check_size(self) -> None:
        """DamagedTokens unless the file is as long as when the sums were made."""
        try:
            n_bytes = self.path.stat().st_size
        except OSError as error:
            raise DamagedTokens(f"{self.path}: {error.strerror}, but {self._sums.path.name} is there") from None
        if n_bytes != self.n_bytes:
            raise DamagedTokens(
                f"{self.path}: {n_bytes:,} bytes, but {self._sums.path.name} was made of {self.n_bytes:,}: one of the "
                f"two is damaged or of another corpus. Copy them again; where the token files are right, run `triaxial "
                f"prepare checksum --replace {self.path.with_suffix('')}`"
            )

    def blocks_around(self, start: int, stop: int) -> tuple[int, int]:
        """The bytes start to stop - 1, widened to whole blocks."""
        return start // BLOCK_BYTES * BLOCK_BYTES, min(_blocks(stop) * BLOCK_BYTES, self.n_bytes)

    def check(self, start: int, data: Any) -> None:
        """DamagedTokens unless whole blocks of the file, `data` from byte `start` on, have their sums."""
        found = _sums_of(memoryview(data).cast("B"))
        expected = self._sums.read(self._first + start // BLOCK_BYTES, len(found)).tolist()
        if found != expected:
            i = next(i for i, (one, other) in enumerate(zip(found, expected, strict=True)) if one != other)
            raise self.damaged(start + i * BLOCK_BYTES, found[i], expected[i])

    def damaged(self, offset: int, found: int, expected: int) -> DamagedTokens:
        """What to say of a block that is not what it was."""
        end = min(offset + BLOCK_BYTES, self.n_bytes)
        return DamagedTokens(
            f"{self.path}: bytes {offset:,} to {end - 1:,} have the checksum {found:08x}, but {self._sums.path.name} "
            f"says {expected:08x}: the file is damaged"
        )

    def all(self) -> Sums:
        """Every sum of the file (blocks,)."""
        return self._sums.read(self._first, _blocks(self.n_bytes))


def sums_path(prefix: Path) -> Path:
    return Path(f"{prefix}.sums")


def open_sums(prefix: Path) -> TokenSums | None:
    """The sums beside a pair of token files, if there are any. ConfigError: they are damaged, or of another length."""
    try:
        sums = TokenSums(prefix)
    except FileNotFoundError:
        return None
    except OSError as error:
        hint = "; raise `ulimit -n` above twice the number of token files" if error.errno == errno.EMFILE else ""
        raise ConfigError(f"{sums_path(prefix)} cannot be opened: {error.strerror}{hint}") from None
    for file in sums.files.values():
        file.check_size()
    return sums


def write_sums(path: Path, bin_sums: Sums, idx_sums: Sums, *, bin_bytes: int, idx_bytes: int) -> None:
    """A new file of sums, on the disk when this returns."""
    head = _HEADER.pack(MAGIC, bin_bytes, idx_bytes, 0)[:-4]
    with open(path, "xb") as file:
        file.write(head + struct.pack("<I", zlib.crc32(head)))
        file.write(bin_sums.astype("<u4").tobytes() + idx_sums.astype("<u4").tobytes())
        file.flush()
        os.fsync(file.fileno())


def sums_of_file(path: Path) -> Sums:
    """What a file's sums are now: reads all of it."""
    return np.array([one for block in _read(path) for one in _sums_of(memoryview(block))], dtype="<u4")


def damaged_blocks(file: FileSums) -> list[DamagedTokens]:
    """Every block that is not what it was. Reads the whole file."""
    found, expected = sums_of_file(file.path), file.all()
    return [
        file.damaged(int(i) * BLOCK_BYTES, int(found[i]), int(expected[i])) for i in np.flatnonzero(found != expected)
    ]


def _read(path: Path) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_READ_BYTES):
            yield block


def _sums_of(data: memoryview) -> list[int]:
    return [zlib.crc32(data[i : i + BLOCK_BYTES]) for i in range(0, len(data), BLOCK_BYTES)]


def _blocks(n_bytes: int) -> int:
    return -(-n_bytes // BLOCK_BYTES)
