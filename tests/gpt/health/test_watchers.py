"""Signals that stop the training loop."""

import os
import signal
import threading

import pytest

from gpt.health.watchers import UNWATCHED, stop_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_noted_inside_and_the_former_handler_returns_outside(number):
    before = signal.getsignal(number)
    with stop_signals() as requested:
        assert not requested()
        os.kill(os.getpid(), number)
        assert requested()
        UNWATCHED.beat("training", 1)
    assert signal.getsignal(number) is before


def test_outside_of_the_main_thread_no_handler_is_installed():
    found = []

    def work():
        with stop_signals() as requested:
            found.append((requested(), signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, before)]
