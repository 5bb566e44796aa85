"""Read packed files as streams, and notice where they are damaged."""

import bz2
import gzip
import json
import lzma
import random

import pytest

from data_prep.readers.compressed import (
    Gap,
    read_bytes,
    read_lines,
    salvaged_blocks,
    split_stream,
    unpacked_blocks,
)
from data_prep.readers.unpackers import Broken, Packed

pytest.importorskip("isal", reason="the extra 'data' is not installed")
zstandard = pytest.importorskip("zstandard", reason="the extra 'data' is not installed")

PACK = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("ending", PACK)
def test_a_file_of_several_streams_is_read_whole_in_bounded_blocks(tmp_path, ending):
    data = random.Random(1).randbytes(300_000) + bytes(600_000)
    path = tmp_path / f"a{ending}"
    path.write_bytes(PACK[ending](data) + PACK[ending](b"\nlast"))
    blocks = list(unpacked_blocks(path))
    assert max(map(len, blocks)) <= 1 << 18
    assert b"".join(blocks) == read_bytes(path) == data + b"\nlast"


@pytest.mark.parametrize("ending", [ending for ending in PACK if ending])
def test_a_truncated_file_gives_its_first_lines_and_then_an_error(tmp_path, ending):
    line = json.dumps({"text": "some words " * 40}).encode()
    path = tmp_path / f"a{ending}"
    path.write_bytes(PACK[ending]((line + b"\n") * 2000)[:-8])
    lines = []
    with pytest.raises(Broken, match=r"truncated|damaged"):  # xz keeps its lengths at the end
        lines.extend(read_lines(path, max_bytes=1000))
    assert set(lines) <= {line}


def test_lines_above_the_limit_have_no_data(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"one\n" + b"x" * 100_000 + b"\nthree"))
    assert list(read_lines(path, max_bytes=10)) == [b"one", None, b"three"]


def test_parts_of_a_stream_do_not_depend_on_its_blocks():
    rng = random.Random(3)
    for _ in range(300):
        separator = rng.choice([b"\n", b"ab", b"aa", b"<|>"])
        data = bytes(rng.choices(b"ab<|>\n", k=rng.randrange(60)))
        parts = data.split(separator)
        at = sorted(rng.choices(range(len(data) + 1), k=5))
        blocks = [data[i:j] for i, j in zip([0, *at], [*at, len(data)], strict=True)]
        found = list(split_stream(blocks, separator, max_bytes=6, give_up_bytes=999))
        starts = [sum(len(part) + len(separator) for part in parts[:n]) for n in range(len(parts))]
        held = [part if len(part) <= 6 else None for part in parts]
        expected = list(zip(starts, map(len, parts), held, strict=True))
        if not parts[-1]:
            expected.pop()  # nothing follows the last separator
        assert [(part.start, part.n_bytes, part.data) for part in found] == expected


LINES = [json.dumps({"id": str(n), "text": f"{n} " + "some words " * 20}).encode() + b"\n" for n in range(3000)]


def salvage(path, ending):
    """The content that can be read of a file, and the gaps in it."""
    with Packed(path) as packed:
        found = list(salvaged_blocks(packed, ending))
    return b"".join(b for b in found if isinstance(b, bytes)), [b for b in found if isinstance(b, Gap)]


@pytest.mark.parametrize("ending", [ending for ending in PACK if ending])
def test_a_damaged_member_costs_itself_and_no_other(tmp_path, ending):
    """Nothing of it is kept, not even the part before the damage, and reading continues after it."""
    pack = zstandard.ZstdCompressor(write_checksum=True).compress if ending == ".zst" else PACK[ending]
    parts = [b"".join(LINES[n : n + 1000]) for n in (0, 1000, 2000)]
    members = [pack(part) for part in parts]
    path, rng = tmp_path / f"a{ending}", random.Random(5)
    for _ in range(20):
        at = rng.randrange(30, len(members[1]))  # behind the mark that starts it
        damaged = bytearray(members[1])
        damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(members[0] + damaged + members[2])
        content, gaps = salvage(path, ending)
        if content == b"".join(parts):  # a bit that nobody needs
            continue
        assert content == parts[0] + parts[2]
        (gap,) = gaps
        assert gap.reason == "damaged"
        assert abs(gap.n_bytes - len(damaged)) <= 16


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
def test_of_a_member_above_the_limit_the_part_that_left_memory_is_kept(tmp_path, monkeypatch, ending):
    monkeypatch.setattr("data_prep.readers.compressed.HOLD_BYTES", 1 << 18)
    data = random.Random(0).randbytes(1 << 20).hex().encode()
    pack = zstandard.ZstdCompressor(write_checksum=True).compress if ending == ".zst" else PACK[ending]
    packed = bytearray(pack(data))
    packed[-1] ^= 1  # in the checksum, or in the length
    (tmp_path / "a").write_bytes(packed)
    content, (gap,) = salvage(tmp_path / "a", ending)
    assert data.startswith(content)
    assert len(data) - (1 << 19) < len(content) < len(data)
    assert gap.detail.endswith(f"; {len(content)} bytes of it were kept, of unknown quality")


def test_a_long_window_is_read_as_far_as_the_memory_allows(tmp_path):
    """A frame of `zstd --long=31` may need 2 GiB, but one of 800 kB needs only that."""
    stream = zstandard.ZstdCompressor().compressobj()
    frame = bytearray(stream.compress(b"".join(LINES)) + stream.flush())
    frame[5] = (31 - 10) << 3  # the window, in the byte after the mark and the flags
    assert zstandard.get_frame_parameters(bytes(frame)).window_size == 1 << 31
    path = tmp_path / "a.zst"
    path.write_bytes(frame + PACK[".zst"](b"next"))
    assert b"".join(unpacked_blocks(path)) == b"".join(LINES) + b"next"
    with Packed(path) as packed:
        *blocks, gap, last = salvaged_blocks(packed, ".zst", max_window_bytes=300_000)
    assert b"".join(LINES).startswith(b"".join(blocks))
    assert gap.reason == "too_large"
    assert gap.detail == "input.max_window_bytes = 300000 is too small: it needs 2147483648"
    assert last == b"next"


def test_a_file_full_of_false_starts_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.readers.compressed._MAX_TRIES", 100)
    path = tmp_path / "a.gz"
    path.write_bytes(b"\x1f\x8b\x08\0" * 1000)
    content, (gap,) = salvage(path, ".gz")
    assert (content, gap.reason, gap.n_bytes) == (b"", "damaged", 4000)
