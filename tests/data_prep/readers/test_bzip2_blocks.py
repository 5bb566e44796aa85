"""Damage in a bzip2 stream costs the block that it hits."""

import bisect
import bz2
import random

import pytest

from data_prep.readers.bzip2_blocks import salvage_stream
from data_prep.readers.unpackers import Packed


@pytest.fixture(scope="module")
def texts(prose):
    rng = random.Random(0)
    words = prose(1, 400).split()
    return " ".join(rng.choices(words, k=60_000)).encode()


@pytest.fixture
def salvage(tmp_path):
    def read(data, start=0, skip=0):
        (tmp_path / "a.bz2").write_bytes(data)
        with Packed(tmp_path / "a.bz2") as packed:
            found = list(salvage_stream(packed, start, skip))
            return (
                b"".join(b for b in found if isinstance(b, bytes)),
                [b for b in found if b.__class__ is tuple],
                packed.at,
            )

    return read


def test_a_whole_stream_is_read_from_any_offset_of_its_content(texts, salvage):
    data = bz2.compress(texts, 1)  # blocks of 100 kB that start at any bit
    assert salvage(data + b"next") == (texts, [], len(data))
    assert salvage(b"before" + data, start=6, skip=150_000) == (texts[150_000:], [], 6 + len(data))


def test_a_flipped_bit_costs_one_block(texts, salvage):
    data = bz2.compress(texts, 1)
    rng = random.Random(1)
    for _ in range(10):
        at = rng.randrange(len(data) // 4, len(data) // 2)
        damaged = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        found, [(first, last)], end = salvage(damaged)
        assert first <= at < last
        assert len(texts) - 2 * 100_000 <= len(found) < len(texts)  # two, if it hits the mark between them
        before = bisect.bisect(range(len(found)), False, key=lambda n: not texts.startswith(found[:n])) - 1
        assert texts.endswith(found[before:])
        assert end == len(data)


def test_what_is_missing_at_the_end_is_a_gap(texts, salvage):
    data = bz2.compress(texts, 1)
    found, [(first, last)], end = salvage(data[: len(data) // 2])
    assert texts.startswith(found)
    assert len(found) > 0
    assert first < last == end == len(data) // 2
    assert salvage(b"nothing that is bzip2") == (b"", [(0, 21)], 21)


def test_a_file_of_marks_alone_is_given_up(salvage, monkeypatch):
    monkeypatch.setattr("data_prep.readers.bzip2_blocks._MAX_BAD", 50)
    data = b"BZh9" + bytes.fromhex("314159265359") * 1000
    assert salvage(data) == (b"", [(4, len(data))], len(data))


def test_many_small_blocks_are_found_in_small_windows(tmp_path):
    """The bytes that are searched grow with the file, not with the number of blocks times a window of a megabyte."""
    path = tmp_path / "a.bz2"
    path.write_bytes(bz2.compress(b"ab" * 1_000_000, 1))  # 20 blocks of some 50 bytes
    looked = []
    with Packed(path) as packed:
        look = packed.look
        packed.look = lambda start, n: looked.append(n) or look(start, n)
        assert sum(len(block) for block in salvage_stream(packed, 0, 0)) == 2_000_000
    assert len(looked) >= 40
    assert max(looked) <= 1 << 15
