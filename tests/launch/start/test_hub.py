"""Look at data sets behind URLs, here in fsspec's memory."""

import json

import pytest

from gpt.errors import ConfigError
from launch.start.hub import look_remote

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("isal", reason="the extra 'data' is not installed")
TEXT = "It was the best of times, it was the worst of times. "


@pytest.fixture
def bucket():
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def test_lines_of_a_folder_are_sampled(bucket):
    rows = [json.dumps({"n": n, "body": TEXT * 5}) for n in range(500)]
    for name in ("a/0.jsonl", "a/1.jsonl", "a/README.md"):
        bucket.pipe(f"/data/{name}", "\n".join(rows).encode())
    found = look_remote(["memory://data"])
    assert found.kinds == {"json lines": 2}
    assert found.paths == ("memory://data/**/*.jsonl",)
    assert found.text_field == "body"
    assert found.text_bytes == pytest.approx(2 * 500 * 5 * len(TEXT), rel=0.1)
    assert found.documents == pytest.approx(1000, rel=0.1)


def test_one_text_file_is_named_as_it_is(bucket):
    bucket.pipe("/data/a.txt", (TEXT * 2000).encode())
    found = look_remote(["memory://data/a.txt"])
    assert (found.paths, found.kinds, found.fields) == (("memory://data/a.txt",), {"text": 1}, ())
    assert found.text_bytes == pytest.approx(len(TEXT) * 2000, rel=0.01)


def test_of_several_forms_one_is_chosen(bucket):
    """Many data sets have Parquet or JSON lines beside plain text. A small file of lines is no form of the data."""
    rows = "\n".join(json.dumps({"text": TEXT * 5}) for _ in range(500))
    bucket.pipe("/data/train.jsonl", rows.encode())
    bucket.pipe("/data/train.txt", (TEXT * 9000).encode())
    assert look_remote(["memory://data"]).kinds == {"json lines": 1}
    bucket.pipe("/data/train.jsonl", b'{"text": "a"}')
    bucket.pipe("/data/train.txt", f"{TEXT}<|endoftext|>".encode() * 9000)
    found = look_remote(["memory://data"])
    assert (found.kinds, found.separator) == ({"text": 1}, "<|endoftext|>")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.bin", b"\0", r"memory://data: none of its 1 files can be read \(a\.bin\)"),
        ("a.jsonl", b'{"n": 1}', r"memory://data: no field of a\.jsonl holds text\. Its fields: n"),
        ("a.warc.gz", b"x", r"memory://data: it has files of the kind web archive"),
    ],
)
def test_what_cannot_be_used_is_one_line(bucket, name, data, message):
    bucket.pipe(f"/data/{name}", data)
    with pytest.raises(ConfigError, match=message):
        look_remote(["memory://data"])
