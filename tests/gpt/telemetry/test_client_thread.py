"""Calls of a client in a thread: in order, with limits, errors at the next call."""

import threading

import pytest

from gpt.telemetry.client_thread import ClientThread, end_children


def test_calls_run_in_order_and_give_their_results():
    done: list[int] = []
    client = ClientThread(patience_s=60)
    for number in range(5):
        client.post(lambda number=number: done.append(number))
    assert client.call(lambda: len(done), limit_s=60) == 5
    assert done == [0, 1, 2, 3, 4]


def test_an_error_reaches_the_caller_and_nothing_runs_after_it():
    client, done = ClientThread(patience_s=60), []
    client.post(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        client.call(lambda: done.append(1), limit_s=60)
    with pytest.raises(ZeroDivisionError):
        client.post(lambda: done.append(2))
    assert not done


def test_a_call_that_hangs_costs_its_limit_and_no_more():
    client, never = ClientThread(patience_s=0), threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
        client.call(never.wait, limit_s=0.05)
    with pytest.raises(TimeoutError, match="no answer within 0 s"):
        client.post(lambda: None)
    never.set()
    assert end_children("no such helper") == []
