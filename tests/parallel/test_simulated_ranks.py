"""All ranks together send like n log n at most: messages and bytes for 125 and for 500 simulated ranks."""

import pytest
from rank_parts import PARTS

FEW, MANY = 125, 500
MAX_GROWTH = 5.5  # (MANY log MANY) / (FEW log FEW) is 5.1, and (MANY / FEW) squared 16


@pytest.mark.parametrize("part", [name for name in PARTS if name != "monitors' settings"])
def test_messages_and_bytes_of_all_ranks_grow_like_n_log_n(part, tmp_path):
    few, many = ((tmp_path / str(n_ranks)) for n_ranks in (FEW, MANY))
    for folder in (few, many):
        folder.mkdir()
    before, after = PARTS[part](FEW, few), PARTS[part](MANY, many)
    assert after.messages <= MAX_GROWTH * before.messages
    assert after.bytes <= MAX_GROWTH * before.bytes


def test_a_monitor_gets_the_processes_of_its_machine_and_the_name_of_each_node(tmp_path):
    assert PARTS["monitors' settings"](MANY, tmp_path).bytes < MANY * (3000 + 30 * MANY / 8)
