"""Read token ids from a `.bin` file by position, with plain reads and no cache of its own.

The file is not mapped into memory. A map costs a page-table page (4 KiB) for every 2 MiB touched, and random samples of
a large corpus touch all of them: 8 GB after a million samples. The kernel would also read ahead as for a sequential
reader, and SIGBUS would end the process if the file became shorter.
"""

import errno
import os
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt.errors import file_error
from gpt.files.regular import open_regular
from gpt.files.retry import retried
from gpt.token_files.checksums import DamagedTokens, FileSums, UnreadableTokens


class StoredTokens:
    """An open file of ids of one type, little-endian, without a header. Threads and forked processes may share it.

    With `sums`, whole blocks are read, and each is compared with its checksum before its ids are returned.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], sums: FileSums | None = None) -> None:
        self.path = path
        self.dtype = dtype
        self._sums = sums
        try:
            with retried(lambda: open_regular(path)) as file:
                self._file = os.dup(file.fileno())
        except OSError as error:
            hint = "; raise `ulimit -n` above twice the number of token files" if error.errno == errno.EMFILE else ""
            raise file_error(error, f"{path} cannot be opened: {error.strerror}{hint}") from None
        weakref.finalize(self, os.close, self._file)

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Read the ids start..stop-1 (stop - start,).

        DamagedTokens: a checksum differs. UnreadableTokens: the disk fails, also when asked again.
        """
        width = self.dtype.itemsize
        if self._sums is None:
            return self._bytes(start * width, stop * width).view(self.dtype)
        first, end = self._sums.blocks_around(start * width, stop * width)
        blocks = self._bytes(first, end)
        self._sums.check(first, blocks)
        return blocks[start * width - first : stop * width - first].view(self.dtype)

    def _bytes(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Read the bytes start..stop-1 of the file."""
        found = np.empty(stop - start, dtype=np.uint8)
        missing = found.data
        while missing:
            try:
                n_bytes = retried(partial(os.preadv, self._file, [missing], start))
            except OSError as error:
                raise UnreadableTokens(f"{self.path}: byte {start:,} cannot be read: {error.strerror}") from None
            if n_bytes == 0:
                raise DamagedTokens(
                    f"{self.path} became shorter after it was opened: it ends before byte {start + 1:,}"
                )
            missing, start = missing[n_bytes:], start + n_bytes
        return found

    def announce(self, start: int, stop: int) -> None:
        """Ask the system to fetch the ids start..stop-1 into memory in the background, for a later `read`."""
        if hasattr(os, "posix_fadvise"):  # missing on macOS, where a read waits for the disk
            width = self.dtype.itemsize
            try:  # noqa: SIM105  contextlib.suppress takes as long as the call
                os.posix_fadvise(self._file, start * width, (stop - start) * width, os.POSIX_FADV_WILLNEED)
            except OSError:
                pass  # not supported by every file system
