"""Every kind of input file gives its documents; what is damaged is counted and the rest is kept."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from data_prep.documents import Document
from data_prep.readers import InputConfig, find_inputs, read_records
from data_prep.web_archives import Dropped, Page
from gpt.errors import ConfigError

pytest.importorskip("fastwarc", reason="the extra 'data' is not installed")
zstandard = pytest.importorskip("zstandard", reason="the extra 'data' is not installed")

SHARED = Path(__file__).parents[3] / "shared/data"


def read(path: Path, **config):
    return list(read_records(path, InputConfig(paths=("x",), **config)))


def kinds(records) -> dict[str, int]:
    return dict(Counter(r.reason if isinstance(r, Dropped) else type(r).__name__ for r in records))


def packed(path: Path, data: bytes) -> Path:
    compress = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(path.suffix, bytes)
    path.write_bytes(compress(data))
    return path


def test_warc_pages_and_what_is_none(tmp_path, warc_record):
    gz = gzip.compress(b"<p>packed</p>")
    chunked = b"4\r\n" + gz[:4] + b"\r\n%x\r\n" % len(gz[4:]) + gz[4:] + b"\r\n0\r\n\r\n"
    path = tmp_path / "a.warc.gz"
    path.write_bytes(
        warc_record(b"software: test", kind="warcinfo")
        + warc_record(b"<p>one</p>", url="<http://one/>", record_id="urn:uuid:1")
        + warc_record(b"gone", status="404 Not Found")
        + warc_record(b"PNG", http="Content-Type: image/png\r\n")
        + warc_record(
            chunked,
            http="Content-Type: text/html\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
        )
        + warc_record(b"plain words", http="Content-Type: text/plain; charset=latin-1\r\n")
        + warc_record(b"<p>stored</p>", kind="resource", content_type="text/html; charset=koi8-r")
    )
    records = read(path)
    assert kinds(records) == {"not_a_page": 1, "Page": 4, "http_status": 1, "not_html": 1}
    one, unpacked, plain, stored = [r for r in records if isinstance(r, Page)]
    assert (one.id, one.content, one.charset) == ("urn:uuid:1", b"<p>one</p>", "utf-8")
    assert one.metadata == {"url": "http://one/", "date": "2026-01-02T03:04:05Z"}
    assert unpacked.content == b"<p>packed</p>"
    assert (plain.is_html, plain.content) == (False, b"plain words")
    assert (stored.is_html, stored.charset) == (True, "koi8-r")
    assert len({r.id for r in (one, unpacked, plain, stored)}) == 4, "records without an id get one each"


@pytest.mark.parametrize("packed_records", [True, False])
def test_a_cut_off_warc_keeps_its_good_records_wherever_it_is_cut(tmp_path, warc_record, packed_records):
    records = [warc_record(f"<p>{n} ".encode() + bytes(range(97, 123)) * 20, packed=packed_records) for n in range(3)]
    path = tmp_path / ("a.warc.gz" if packed_records else "a.warc")
    whole, last = b"".join(records[:2]), records[2]
    step = max(len(last) // 40, 1)
    for cut in range(1, len(last), step):
        path.write_bytes(whole + last[:cut])
        found = kinds(read(path))
        assert found.get("Page", 0) >= 2, (cut, found)
        if found.get("Page") == 2:
            assert found == {"Page": 2, "truncated": 1}, cut
        else:  # nothing of the page itself is missing, only what follows it
            assert found == {"Page": 3}, cut
            assert cut >= len(last) - 16, cut
    path.write_bytes(whole)
    assert kinds(read(path)) == {"Page": 2}


def test_damage_inside_a_warc_is_counted(tmp_path, warc_record):
    good, bad = warc_record(b"<p>good</p>"), bytearray(warc_record(b"<p>bad</p>" * 50))
    bad[30:60] = b"\xff" * 30
    path = tmp_path / "a.warc.gz"
    path.write_bytes(good + bytes(bad) + good)
    found = kinds(read(path))
    assert found["Page"] >= 1
    assert found.get("damaged", 0) + found.get("truncated", 0) == 1
    (tmp_path / "b.warc.gz").write_bytes(b"this is no archive at all")
    assert kinds(read(tmp_path / "b.warc.gz")) == {"damaged": 1}


def test_records_above_the_limit_are_left_out(tmp_path, warc_record):
    bomb = gzip.compress(b"a" * 1_000_000)
    path = tmp_path / "a.warc.gz"
    path.write_bytes(
        warc_record(b"<p>" + b"b" * 30_000)
        + warc_record(bomb, http="Content-Type: text/html\r\nContent-Encoding: gzip\r\n")
        + warc_record(b"<p>small</p>")
    )
    assert kinds(read(path, max_record_bytes=20_000)) == {"too_large": 2, "Page": 1}


def test_wet_gives_its_text(tmp_path, warc_record):
    path = tmp_path / "a.warc.wet.gz"
    path.write_bytes(
        warc_record(b"x", kind="warcinfo")
        + warc_record("Ärger\nzwei".encode(), kind="conversion", content_type="text/plain", record_id="urn:uuid:7")
    )
    records = read(path)
    assert kinds(records) == {"not_a_page": 1, "Document": 1}
    assert (records[1].id, records[1].text) == ("urn:uuid:7", "Ärger\nzwei")


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_json_lines(tmp_path, ending):
    lines = [
        json.dumps({"id": "a", "text": "one\nä", "url": "http://u", "other": 1}),
        json.dumps({"id": 7, "text": "two"}),
        json.dumps({"text": "no id"}),
        '{"text": "\\ud800 lone"}',
        '{"text": 3}',
        "[1]",
        "not json",
        "",
        json.dumps({"text": "x" * 500}),
        json.dumps({"id": "z", "text": "last"}),
    ]
    records = read(packed(tmp_path / f"a.jsonl{ending}", "\n".join(lines).encode()), max_record_bytes=400)
    assert kinds(records) == {"Document": 5, "malformed": 3, "too_large": 1}
    documents = [r for r in records if isinstance(r, Document)]
    assert [d.text for d in documents] == ["one\nä", "two", "no id", "\ufffd lone", "last"]
    assert [d.id for d in documents[:2]] == ["a", "7"]
    assert documents[0].metadata == {"url": "http://u"}


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_cut_off_json_lines_keep_what_is_whole(tmp_path, ending):
    line = json.dumps({"text": "some words " * 40}).encode() + b"\n"
    path = packed(tmp_path / f"a.jsonl{ending}", line * 2000)
    data = path.read_bytes()
    path.write_bytes(data[:-8])
    found = kinds(read(path))
    assert found["truncated"] == 1
    assert found.get("Document", 0) <= 2000
    path.write_bytes(data + data)
    assert kinds(read(path)) == {"Document": 4000}


def test_other_field_names(tmp_path):
    path = packed(tmp_path / "a.jsonl", b'{"key": "k", "body": "words"}')
    (document,) = read(path, text_field="body", id_field="key")
    assert (document.id, document.text) == ("k", "words")


def test_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="the extra 'data' is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"id": ["a", "b", "c"], "text": ["one", None, "y" * 99], "n": [1, 2, 3]}), path)
    records = read(path, max_record_bytes=50)
    assert kinds(records) == {"Document": 1, "malformed": 1, "too_large": 1}
    assert (records[0].id, records[0].text) == ("a", "one")
    with pytest.raises(ConfigError, match=r"no column 'body' \(it has: id, text, n\)"):
        read(path, text_field="body")
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(ConfigError, match="not a readable Parquet file"):
        read(path)


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_text_files(tmp_path, ending):
    path = packed(tmp_path / f"a.txt{ending}", b"\xef\xbb\xbfone\n\ntwo\n\n\n\nthree" + "ä".encode())
    assert [d.text for d in read(path)] == ["one\n\ntwo\n\n\n\nthreeä"]
    assert [d.text for d in read(path, text_separator="\n\n")] == ["one", "two", "threeä"]
    assert kinds(read(path, max_record_bytes=10)) == {"too_large": 1}


def test_text_documents_across_blocks_and_above_the_limit(tmp_path):
    parts = ["a" * 70_000, "b", "c" * 300_000, "d", "e" * 65_535, "f"]
    path = packed(tmp_path / "a.txt", "<|>".join(parts).encode())
    records = read(path, text_separator="<|>", max_record_bytes=100_000)
    assert [r.text for r in records if isinstance(r, Document)] == [parts[i] for i in (0, 1, 3, 4, 5)]
    assert kinds(records) == {"Document": 5, "too_large": 1}


def test_finding_inputs(tmp_path):
    for name in ("b.txt", "a.jsonl.gz", "c.csv"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "d.warc.gz").write_bytes(b"")
    found = find_inputs([f"{tmp_path}/*.txt", f"{tmp_path}/**/*.gz", f"{tmp_path}/b.txt"])
    assert [path.name for path in found] == ["a.jsonl.gz", "b.txt", "d.warc.gz"]
    for pattern, message in [
        (f"{tmp_path}/*.nothing", "no file matches"),
        (f"{tmp_path}/c.csv", "cannot tell what"),
        (f"{tmp_path}/deep", "is a folder"),
    ]:
        with pytest.raises(ConfigError, match=message):
            find_inputs([pattern])
    with pytest.raises(ConfigError, match=r"input\.paths is empty"):
        InputConfig()
    with pytest.raises(ConfigError, match="both given"):
        InputConfig(paths=("a",), source="python-docs")


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is absent")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("aeb-00000.warc.gz", {"Page": 91}),
        ("aeb-00000.warc.wet.gz", {"Document": 91}),
        ("dolma-sample-0000.warc.gz", {"not_a_page": 24, "Page": 24}),
        ("resiliparse-clipped.warc.gz", {"truncated": 1}),
        ("resiliparse-warcfile.warc.gz", {"not_a_page": 34, "Page": 16}),
        ("whirlwind.warc.gz", {"not_a_page": 3, "Page": 1}),
        ("whirlwind.warc.wet.gz", {"not_a_page": 1, "Document": 1}),
    ],
)
def test_real_archives(name, expected):
    assert kinds(read(SHARED / "warc" / name)) == expected
