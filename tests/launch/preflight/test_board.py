"""Messages of the ranks of a preflight through a store."""

import pytest
from torch._C._distributed_c10d import HashStore

from launch.preflight.board import Board
from launch.processes.sealing import Seal
from parallel.errors import ForgedMessage

SEAL = Seal.of("0123456789abcdef" * 4, "messages of the preflight")


@pytest.mark.parametrize("seal", [SEAL, None])
def test_messages_are_read_as_they_were_posted(seal):
    board = Board(HashStore(), seal)
    board.post("plan 1", {"groups": [[0, 1]], "limit_s": 2.5})
    assert board.read("plan 1", timeout_s=1) == {"groups": [[0, 1]], "limit_s": 2.5}
    board.post("outcome 1 7", "ok")
    assert board.read_all({7: "outcome 1 7", 8: "outcome 1 8"}, timeout_s=0.1) == {7: "ok"}
    with pytest.raises(RuntimeError):
        board.read("never", timeout_s=0.1)


def test_a_message_of_a_stranger_is_refused():
    store = HashStore()
    store.set("plan 1", b'{"groups": []}')
    with pytest.raises(ForgedMessage):
        Board(store, SEAL).read("plan 1", timeout_s=1)
