"""The ids of one `.bin` file, read by position; never maps the file and never keeps what it read.

A mapped file would cost a page table page (4 KiB) for every 2 MiB that is ever touched, which random samples of a large
corpus do one by one: 8 GB after a million samples. The kernel would read as far ahead of each as of a sequential
reader, and a file that shrinks would end the process by SIGBUS.
"""

import errno
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt.errors import ConfigError
from gpt.token_files.checksums import DamagedTokens, FileSums


class StoredTokens:
    """An open file of ids of one type, little-endian, without a header. Threads and forked processes may share it.

    With `sums`, whole blocks are read, and none is handed out that is not what it was when they were made.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], sums: FileSums | None = None) -> None:
        self.path = path
        self.dtype = dtype
        self._sums = sums
        try:
            self._file = os.open(path, os.O_RDONLY)
        except OSError as error:
            hint = "; raise `ulimit -n` above twice the number of token files" if error.errno == errno.EMFILE else ""
            raise ConfigError(f"{path} cannot be opened: {error.strerror}{hint}") from None
        weakref.finalize(self, os.close, self._file)

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """The ids start..stop-1 (stop - start,). DamagedTokens: they are not what was written, or the disk fails."""
        width = self.dtype.itemsize
        if self._sums is None:
            return self._bytes(start * width, stop * width).view(self.dtype)
        first, end = self._sums.blocks_around(start * width, stop * width)
        blocks = self._bytes(first, end)
        self._sums.check(first, blocks)
        return blocks[start * width - first : stop * width - first].view(self.dtype)

    def _bytes(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """The bytes start..stop-1 of the file."""
        found = np.empty(stop - start, dtype=np.uint8)
        missing = found.data
        while missing:
            try:
                n_bytes = os.preadv(self._file, [missing], start)
            except OSError as error:
                raise DamagedTokens(f"{self.path}: byte {start:,} cannot be read: {error.strerror}") from None
            if n_bytes == 0:
                raise DamagedTokens(
                    f"{self.path} has become shorter since it was opened: it ends before byte {start + 1:,}"
                )
            missing, start = missing[n_bytes:], start + n_bytes
        return found

    def announce(self, start: int, stop: int) -> None:
        """Have the system fetch the ids start..stop-1 in the background; a later `read` then finds them in memory."""
        if hasattr(os, "posix_fadvise"):  # macOS has none; there a read waits for the disk
            width = self.dtype.itemsize
            try:  # noqa: SIM105  entering a `suppress` takes as long as the call
                os.posix_fadvise(self._file, start * width, (stop - start) * width, os.POSIX_FADV_WILLNEED)
            except OSError:
                pass  # a file system may know no such wish
