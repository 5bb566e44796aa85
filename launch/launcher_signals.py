"""What a launcher does when it is signalled: it tells its ranks once and gives them time to save; starts nothing."""

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
INSISTING = (signal.SIGINT, signal.SIGQUIT)  # somebody at the keyboard who asks again does not want to wait


@contextlib.contextmanager
def signals_tell_ranks(*, grace_s: float) -> Iterator[None]:
    """While inside, a signal raises torch elastic's SignalException, at which it passes the signal on to its ranks and
    waits for them; in the main thread only.

    Of elastic's own handlers each further signal raises as well: the second breaks into that wait and the third ends
    the launcher, and its ranks with it, however far their save is. Here more of them are not heard for `grace_s`, and
    a SIGHUP that is ignored, as nohup has it, stays so.
    """
    from torch.distributed.elastic.multiprocessing import SignalException

    first_at: float | None = None

    def tell(number: int, frame: FrameType | None) -> None:
        nonlocal first_at
        now = time.monotonic()
        if first_at is not None and number not in INSISTING and now < first_at + grace_s:
            return
        first_at = now if first_at is None else first_at
        raise SignalException(f"the launcher got signal {number}", sigval=signal.Signals(number))

    hung_up_on = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    numbers = [number for number in FORWARDED if not (hung_up_on and number == signal.SIGHUP)]
    before = {number: signal.signal(number, tell) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
