"""Start, talk to and end a child process."""

import signal

import pytest

from data_prep.execution.child_frames import FAILED, READY, REPLY, SIZE, TEXT
from data_prep.execution.child_process import Child
from gpt.errors import ConfigError

CHILD = """
import json, signal, sys, time
from data_prep.execution.child_frames import FAILED, MISTAKE, READY, TEXT, limit_memory, read_text, reply

facts = json.loads(read_text(sys.stdin.buffer))
if "mistake" in facts:
    reply(sys.stdout.buffer, MISTAKE, facts["mistake"])
    sys.exit()
if "limit" in facts:
    limit_memory(facts["limit"])
reply(sys.stdout.buffer, READY)
while True:
    text = read_text(sys.stdin.buffer)
    if text == "sleep":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(300)
    if text == "die":
        signal.raise_signal(signal.SIGKILL)
    if text == "grow":
        try:
            bytearray(1 << 28)
        except MemoryError:
            reply(sys.stdout.buffer, FAILED, "no memory")
            continue
    reply(sys.stdout.buffer, TEXT, text * 2)
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    (tmp_path / "echo_child.py").write_text(CHILD)
    monkeypatch.syspath_prepend(str(tmp_path))
    children = []

    def make(**facts):
        children.append(Child("echo_child", facts))
        return children[-1]

    return make


def message(text: str) -> list[bytes]:
    return [SIZE.pack(len(text.encode())), text.encode()]


def test_texts_of_any_size_come_back_in_order(start):
    child = start()
    texts = ["", "ä", "x" * 3_000_000, "last"]
    for text in texts:
        child.send(message(text))
        assert child.receive(60.0) == (TEXT, text * 2)
    ended = child.end()
    assert (ended.code, ended.stuck) == (0, False)
    assert ended.max_rss_bytes > 1 << 20


def test_a_mistake_at_the_start_is_the_users(start):
    with pytest.raises(ConfigError, match=r"^the file is missing$"):
        start(mistake="the file is missing")


def test_a_module_that_does_not_start_is_an_error():
    with pytest.raises(RuntimeError, match=r"the child process no_such_module did not start \(status 1\)"):
        Child("no_such_module", {})


def test_a_dead_child_gives_no_frame(start):
    child = start()
    child.send(message("die"))
    assert child.receive(60.0) is None
    child.send(message("more"))
    assert child.end().code == -signal.SIGKILL


def test_a_stuck_child_is_killed(start):
    child = start()
    child.send(message("sleep"))
    assert child.receive(0.3) is None
    ended = child.end()
    assert (ended.code, ended.stuck) == (-signal.SIGKILL, True)


def test_memory_above_the_limit_is_refused(start):
    child = start(limit=64 << 20)
    child.send(message("grow"))
    assert child.receive(60.0) == (FAILED, "no memory")
    child.send(message("a"))
    assert child.receive(60.0) == (TEXT, "aa")
    child.end()


def test_the_head_of_a_frame_is_five_bytes():
    assert REPLY.pack(READY, 7) == b"\x00\x07\x00\x00\x00"
