"""Read packed files as streams, and notice where they are damaged."""

import bz2
import gzip
import json
import lzma
import random

import pytest

from data_prep.readers.compressed import Broken, read_bytes, read_lines, split_stream, unpacked_blocks

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
        found = list(split_stream(blocks, separator, max_bytes=6, give_up_bytes=999, taken=[0]))
        starts = [sum(len(part) + len(separator) for part in parts[:n]) for n in range(len(parts))]
        held = [part if len(part) <= 6 else None for part in parts]
        expected = list(zip(starts, map(len, parts), held, strict=True))
        if not parts[-1]:
            expected.pop()  # nothing follows the last separator
        assert [(part.start, part.n_bytes, part.data) for part in found] == expected
