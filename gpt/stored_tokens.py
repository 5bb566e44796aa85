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


class StoredTokens:
    """An open file of ids of one type, little-endian, without a header. Threads and forked processes may share it."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path = path
        self.dtype = dtype
        try:
            self._file = os.open(path, os.O_RDONLY)
        except OSError as error:
            hint = "; raise `ulimit -n` above the number of token files" if error.errno == errno.EMFILE else ""
            raise ConfigError(f"{path} cannot be opened: {error.strerror}{hint}") from None
        weakref.finalize(self, os.close, self._file)

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """The ids start..stop-1 (stop - start,). ConfigError: the file has become shorter, or its disk fails."""
        tokens = np.empty(stop - start, dtype=self.dtype)
        missing, offset_bytes = tokens.data.cast("B"), start * self.dtype.itemsize
        while missing:
            try:
                n_bytes = os.preadv(self._file, [missing], offset_bytes)
            except OSError as error:
                raise ConfigError(f"{self.path} cannot be read at token {start:,}: {error.strerror}") from None
            if n_bytes == 0:
                raise ConfigError(f"{self.path} has become shorter since it was opened; copy or write it again")
            missing, offset_bytes = missing[n_bytes:], offset_bytes + n_bytes
        return tokens

    def announce(self, start: int, stop: int) -> None:
        """Have the system fetch the ids start..stop-1 in the background; a later `read` then finds them in memory."""
        if hasattr(os, "posix_fadvise"):  # macOS has none; there a read waits for the disk
            width = self.dtype.itemsize
            try:  # noqa: SIM105  entering a `suppress` takes as long as the call
                os.posix_fadvise(self._file, start * width, (stop - start) * width, os.POSIX_FADV_WILLNEED)
            except OSError:
                pass  # a file system may know no such wish
