"""For tests: an executor without processes, and damage that only a digest can notice."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any


class InThisProcess:
    """An executor that runs jobs in this process; those of the project are tested elsewhere."""

    def __init__(self, n_workers: int) -> None:
        pass

    def run(self, function: Callable[[Any], Any], jobs: Sequence[Any], *, name: object) -> Iterator[tuple[int, Any]]:
        yield from ((index, function(job)) for index, job in enumerate(jobs))

    def longest(self) -> None:
        return None

    def close(self) -> None:
        pass


def flip_a_bit(path: Path) -> None:
    """Flip a bit in the middle of a file. Its size and the time of its last change stay the same."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
