"""Try a read or write again after a fault of the machine, which may pass: a bus error, a file server that reboots."""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from gpt.errors import MACHINE_FAULTS, NO_ROOM

T = TypeVar("T")
PAUSES_S = (0.1, 1.0, 5.0)  # before the second, third and fourth try


def retried(action: Callable[[], T], *, pauses_s: Sequence[float] = PAUSES_S) -> T:
    """Return the result of `action`, which may be called several times.

    OSError: the last try failed as well, or a later try cannot help, as with a full disk or a missing file.
    """
    for pause_s in pauses_s:
        try:
            return action()
        except OSError as error:
            if error.errno not in MACHINE_FAULTS or error.errno in NO_ROOM:
                raise
        time.sleep(pause_s)
    return action()
