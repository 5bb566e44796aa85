"""Checksums of token files: PREFIX.sums has a CRC-32 for each block of PREFIX.bin and PREFIX.idx.

Layout, little-endian: magic, size of .bin and of .idx in bytes, the CRC-32 of these 24 bytes; then the CRC-32 (u32) of
each 4 KiB block of .bin, then of .idx. The last block of a file may be shorter. A block is a page, so a check reads
nothing from the disk that a read of the tokens would not. The checksums take a thousandth of the size of the files.
"""

import errno
import os
import struct
import weakref
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from gpt.errors import ConfigError, MachineFault, file_error
from gpt.files.atomic import sync_file
from gpt.files.regular import open_regular
from gpt.files.retry import retried

BLOCK_BYTES = 4096
MAGIC = b"TRIXSUM1"
_HEADER = struct.Struct("<8sQQI")  # magic, bytes of .bin, bytes of .idx, CRC-32 of the 24 bytes before it
_READ_BYTES = 1 << 20

Sums = npt.NDArray[np.uint32]


class DamagedTokens(ConfigError):
    """A part of a token file has another checksum than when it was written, or cannot be read."""


class UnreadableTokens(DamagedTokens, MachineFault):
    """The disk refuses to read a part of a token file, also when asked again."""


class SummedFile:
    """A new file that computes the checksum of each block written to it. Leaving the `with` block closes it."""

    def __init__(self, path: Path) -> None:
        # x: an existing file or link with this name is left alone
        self._file: BinaryIO = open(path, "xb", buffering=1 << 20)  # noqa: SIM115  closed in __exit__
        self._sums: list[int] = []
        self._rest = b""  # start of the block that is not full yet
        self.n_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: TracebackType | None) -> None:
        self._file.close()  # on a full disk this flushes, and fails, again

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
        """Flush the file to the disk."""
        sync_file(self._file)

    @property
    def sums(self) -> Sums:
        """The checksums of all blocks written (blocks,)."""
        return np.array([*self._sums, *_sums_of(memoryview(self._rest))], dtype="<u4")


class TokenSums:
    """The open PREFIX.sums. Threads and forked processes may share it."""

    def __init__(self, prefix: Path) -> None:
        self.path = sums_path(prefix)
        with open_regular(self.path) as file:
            self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)
        head, size = os.pread(self._file, _HEADER.size, 0), os.fstat(self._file).st_size
        again = f"run `triaxial prepare checksum --replace {prefix}`"
        if len(head) < _HEADER.size or not head.startswith(MAGIC):
            raise ConfigError(f"{self.path} is not a checksum file. To write it again, {again}.")
        _, bin_bytes, idx_bytes, own = _HEADER.unpack(head)
        n_sums = _blocks(bin_bytes) + _blocks(idx_bytes)
        if own != zlib.crc32(head[:-4]) or size != _HEADER.size + 4 * n_sums:
            raise ConfigError(f"{self.path} is damaged. Copy it again; if the token files are right, {again}.")
        self.files = {
            ".bin": FileSums(self, Path(f"{prefix}.bin"), bin_bytes, first=0),
            ".idx": FileSums(self, Path(f"{prefix}.idx"), idx_bytes, first=_blocks(bin_bytes)),
        }

    def read(self, first: int, n: int) -> Sums:
        """Read the checksums first..first+n-1 of both files together."""
        try:
            data = retried(lambda: os.pread(self._file, 4 * n, _HEADER.size + 4 * first))
        except OSError as error:
            raise UnreadableTokens(f"{self.path} cannot be read: {error.strerror}") from None
        if len(data) != 4 * n:
            raise DamagedTokens(f"{self.path} became shorter after it was opened. Copy it again.")
        return np.frombuffer(data, dtype="<u4")


class FileSums:
    """The checksums of one of the two files."""

    def __init__(self, sums: TokenSums, path: Path, n_bytes: int, *, first: int) -> None:
        self._sums, self.path, self.n_bytes, self._first = sums, path, n_bytes, first

    def check_size(self) -> None:
        """Check the size of the file. DamagedTokens: it is not the size that the checksums were computed for."""
        try:
            n_bytes = self.path.stat().st_size
        except OSError as error:
            raise DamagedTokens(f"{self.path}: {error.strerror}, but {self._sums.path.name} exists") from None
        if n_bytes != self.n_bytes:
            raise DamagedTokens(
                f"{self.path}: {n_bytes:,} bytes, but {self._sums.path.name} was made of {self.n_bytes:,}: one of the "
                f"two is damaged or from another corpus. Copy them again; if the token files are right, run `triaxial "
                f"prepare checksum --replace {self.path.with_suffix('')}`."
            )

    def blocks_around(self, start: int, stop: int) -> tuple[int, int]:
        """Widen the byte range start..stop-1 to whole blocks."""
        return start // BLOCK_BYTES * BLOCK_BYTES, min(_blocks(stop) * BLOCK_BYTES, self.n_bytes)

    def check(self, start: int, data: Any) -> None:
        """Compare whole blocks, `data` from byte `start` of the file on, with their checksums. DamagedTokens: wrong."""
        found = _sums_of(memoryview(data).cast("B"))
        expected = self._sums.read(self._first + start // BLOCK_BYTES, len(found)).tolist()
        if found != expected:
            i = next(i for i, (one, other) in enumerate(zip(found, expected, strict=True)) if one != other)
            raise self.damaged(start + i * BLOCK_BYTES, found[i], expected[i])

    def damaged(self, offset: int, found: int, expected: int) -> DamagedTokens:
        """Return the error for the block at `offset`."""
        end = min(offset + BLOCK_BYTES, self.n_bytes)
        return DamagedTokens(
            f"{self.path}: bytes {offset:,} to {end - 1:,} have the checksum {found:08x}, but {self._sums.path.name} "
            f"says {expected:08x}: the file is damaged"
        )

    def all(self) -> Sums:
        """Read all checksums of the file (blocks,)."""
        return self._sums.read(self._first, _blocks(self.n_bytes))


def sums_path(prefix: Path) -> Path:
    """Return the path of the checksum file."""
    return Path(f"{prefix}.sums")


def open_sums(prefix: Path) -> TokenSums | None:
    """Open the checksums of a pair of token files; None if there are none. ConfigError: damaged, or sizes differ."""
    try:
        sums = retried(lambda: TokenSums(prefix))
    except FileNotFoundError:
        return None
    except OSError as error:
        hint = "; raise `ulimit -n` above twice the number of token files" if error.errno == errno.EMFILE else ""
        raise file_error(error, f"{sums_path(prefix)} cannot be opened: {error.strerror}{hint}") from None
    for file in sums.files.values():
        file.check_size()
    return sums


def write_sums(file: BinaryIO, bin_sums: Sums, idx_sums: Sums, *, bin_bytes: int, idx_bytes: int) -> None:
    """Write the content of a checksum file."""
    head = _HEADER.pack(MAGIC, bin_bytes, idx_bytes, 0)[:-4]
    file.write(head + struct.pack("<I", zlib.crc32(head)))
    file.write(bin_sums.astype("<u4").tobytes() + idx_sums.astype("<u4").tobytes())


def sums_of_file(path: Path, read: Callable[[int], object] = int) -> Sums:
    """Compute the checksums of a file; reads all of it. `read` is called with the bytes of each part that is read."""
    found: list[int] = []
    for block in _read(path):
        found += _sums_of(memoryview(block))
        read(len(block))
    return np.array(found, dtype="<u4")


def damaged_blocks(file: FileSums, read: Callable[[int], object] = int) -> list[DamagedTokens]:
    """Return an error for every block whose checksum differs. Reads the whole file; `read` as for `sums_of_file`."""
    found, expected = sums_of_file(file.path, read), file.all()
    return [
        file.damaged(int(i) * BLOCK_BYTES, int(found[i]), int(expected[i])) for i in np.flatnonzero(found != expected)
    ]


def _read(path: Path) -> Iterator[bytes]:
    with open_regular(path, buffering=0) as file:
        while block := file.read(_READ_BYTES):
            yield block


def _sums_of(data: memoryview) -> list[int]:
    return [zlib.crc32(data[i : i + BLOCK_BYTES]) for i in range(0, len(data), BLOCK_BYTES)]


def _blocks(n_bytes: int) -> int:
    return -(-n_bytes // BLOCK_BYTES)
