"""Every kind of input file gives its documents; what is damaged is counted and the rest is kept."""

import bz2
import gzip
import json
import lzma
import random
import zlib
from collections import Counter
from pathlib import Path

import pytest

from data_prep.documents.records import Dropped, Page
from data_prep.documents.shards import Document
from data_prep.readers.compressed import split_stream
from data_prep.readers.http_messages import read_response
from data_prep.readers.readers import InputConfig, find_inputs, read_records
from gpt.errors import ConfigError

pytest.importorskip("isal", reason="the extra 'data' is not installed")
zstandard = pytest.importorskip("zstandard", reason="the extra 'data' is not installed")
xxhash = pytest.importorskip("xxhash", reason="the extra 'data' is not installed")
brotli = pytest.importorskip("brotli", reason="the extra 'data' is not installed")

SHARED = Path(__file__).parents[4] / "shared/data"


PACK = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def read(path: Path, **config):
    return list(read_records(path, InputConfig(paths=("x",), **config)))


def kinds(records) -> dict[str, int]:
    return dict(Counter(r.reason if isinstance(r, Dropped) else type(r).__name__ for r in records))


def packed(path: Path, data: bytes) -> Path:
    path.write_bytes(PACK.get(path.suffix, bytes)(data))
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
    path.write_bytes(good + bytes(bad) + good * 2 + b"no gzip member" + good + bytes(1000))
    records = read(path)
    assert kinds(records) == {"Page": 4, "damaged": 2}, "the zeros at the end are padding"
    places = [(r.id.partition("@")[2], r.n_bytes) for r in records if isinstance(r, Dropped)]
    assert places == [(str(len(good)), len(bad)), (str(3 * len(good) + len(bad)), len(b"no gzip member"))]
    stored = gzip.compress(warc_record(b"<p>" + b"x" * 60_000, packed=False), compresslevel=0)
    to_the_end_of_a_block = (1 << 16) + 4 - len(good) - len(stored)  # then its last bytes are there before its sum is
    for length in (60_000, 60_000 + to_the_end_of_a_block):
        sums = bytearray(gzip.compress(warc_record(b"<p>" + b"x" * length, packed=False), compresslevel=0))
        sums[-6] ^= 1
        path.write_bytes(good + bytes(sums) + good)
        assert kinds(read(path)) == {"Page": 2, "damaged": 1}, "a record is not used before its sum is right"
    assert len(good) + len(sums) == (1 << 16) + 4
    for name, reason in (("b.warc.gz", "damaged"), ("b.warc", "malformed"), ("b.arc", "malformed")):
        (tmp_path / name).write_bytes(b"this is no archive at all")
        assert kinds(read(tmp_path / name)) == {reason: 1}


def test_dropped_records_name_their_place(tmp_path, warc_record):
    """By the file's content, as the manifest has it, so the same wherever the file lies and whatever it is called."""
    first, gone = warc_record(b"<p>"), warc_record(b"gone", status="404 Not Found", record_id="urn:gone")
    data = first + warc_record(b"", kind="warcinfo") + gone
    (tmp_path / "a.warc.gz").write_bytes(data)
    (tmp_path / "b.warc.gz").write_bytes(data)
    _, info, missing = read(tmp_path / "a.warc.gz")
    assert info.id == f"file:{xxhash.xxh3_128(data).hexdigest()[:16]}@{len(first)}"
    assert (missing.id, missing.detail) == ("urn:gone", "404")
    assert read(tmp_path / "a.warc.gz") == read(tmp_path / "b.warc.gz")


def test_records_over_several_gzip_members_and_several_records_in_one(tmp_path, warc_record):
    records = [warc_record(b"<p>" + bytes([65 + n]) * 5000, packed=False) for n in range(4)]
    data = b"".join(records)
    path = tmp_path / "a.warc.gz"
    for size in (700, 5000, 100_000):  # 5,000 and 700 do not divide the records' size
        path.write_bytes(b"".join(gzip.compress(data[i : i + size]) for i in range(0, len(data), size)))
        assert [r.content[3] for r in read(path)] == [65, 66, 67, 68], size
    path.write_bytes(data)
    assert kinds(read(path)) == {"Page": 4}, "the content says what it is, not the name"


def arc_record(url: str, block: bytes, kind: str = "text/html") -> bytes:
    return f"{url} 192.0.2.1 20080430204825 {kind} {len(block)}\n".encode() + block + b"\n"


@pytest.mark.parametrize("packed_records", [True, False])
def test_arc(tmp_path, packed_records):
    """Version 1, the format before WARC: Internet Archive, "Arc File Format", 1996."""
    first = b"1 0 InternetArchive\nURL IP-address Archive-date Content-type Archive-length\n"
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=koi8-r\r\n\r\n"
    records = [
        arc_record("filedesc://a.arc", first, "text/plain"),
        arc_record("dns:example.org", b"20080430204825\nexample.org. 1 IN A 192.0.2.1\n", "text/dns"),
        arc_record("http://example.org/a b", http + b"<p>one"),
        arc_record("http://example.org/gone", b"HTTP/1.0 404 Not Found\r\n\r\n"),
        arc_record("http://example.org/2", http + b"<p>two"),
    ]
    path = tmp_path / ("a.arc.gz" if packed_records else "a.arc")
    path.write_bytes(b"".join(gzip.compress(r) if packed_records else r for r in records))
    found = read(path)
    assert kinds(found) == {"not_a_page": 2, "Page": 2, "http_status": 1}
    one, two = (r for r in found if isinstance(r, Page))
    assert (one.content, one.charset, two.content) == (b"<p>one", "koi8-r", b"<p>two")
    assert one.metadata == {"url": "http://example.org/a b", "date": "2008-04-30T20:48:25Z"}
    assert one.id != two.id
    records[2] = records[2].replace(b" %d\n" % len(http + b"<p>one"), b" 99999\n", 1)
    path.write_bytes(b"".join(gzip.compress(r) if packed_records else r for r in records))
    assert kinds(read(path)) == {"not_a_page": 2, "wrong_length": 1, "http_status": 1, "Page": 1}


def response(headers: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n" + headers + b"\r\n" + body


def test_bodies_are_unpacked_as_their_headers_say():
    text = b"<p>" + b"words of a page " * 400
    raw = zlib.compressobj(wbits=-15)
    packings = {
        b"gzip": gzip.compress(text),
        b"x-gzip": gzip.compress(text),
        b"deflate": zlib.compress(text),
        b"DEFLATE": raw.compress(text) + raw.flush(),
        b"br": brotli.compress(text),
        b"zstd": zstandard.compress(text),
        b"identity": text,
        b"gzip, br": brotli.compress(gzip.compress(text)),
    }
    for name, body in packings.items():
        block = response(b"Content-Encoding: " + name + b"\r\n", body)
        assert read_response(block, max_bytes=10_000).body == text, name
        with pytest.raises(OverflowError):
            read_response(block, max_bytes=6000)
        if name != b"identity":  # headers of a crawler that has unpacked the body
            assert read_response(response(b"Content-Encoding: " + name + b"\r\n", text), max_bytes=10_000).body == text
    chunks = b"10;x=y\r\n" + text[:16] + b"\r\n%X\r\n" % len(text[16:]) + text[16:] + b"\r\n0\r\n\r\n"
    for body in (chunks, chunks[:-7], text):
        assert read_response(response(b"Transfer-Encoding: chunked\r\n", body), max_bytes=10_000).body == text
    half = read_response(response(b"Content-Encoding: gzip\r\n", gzip.compress(text)[:-20]), max_bytes=10_000).body
    assert text.startswith(half)
    assert len(half) > 16
    for wrong in (b"no HTTP", response(b"Content-Encoding: pack200\r\n", b"x"), b"HTTP/1.1 200 OK\r\nA: b\r\n"):
        with pytest.raises(ValueError, match=r"status line|unknown Content-Encoding|do not end"):
            read_response(wrong, max_bytes=100)


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


@pytest.mark.parametrize("ending", ["", *PACK])
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


@pytest.mark.parametrize("ending", PACK)
def test_cut_off_json_lines_keep_what_is_whole(tmp_path, ending):
    line = json.dumps({"text": "some words " * 40}).encode() + b"\n"
    path = packed(tmp_path / f"a.jsonl{ending}", line * 2000)
    data = path.read_bytes()
    path.write_bytes(data[:-8])
    found = kinds(read(path))
    assert found.pop("truncated", 0) + found.pop("damaged", 0) == 1  # xz keeps its lengths at the end
    assert found.get("Document", 0) <= 2000
    path.write_bytes(data + data)
    assert kinds(read(path)) == {"Document": 4000}
    path.write_bytes(data + b"something else")
    assert kinds(read(path)) == {"Document": 2000, "damaged": 1}


def test_the_names_that_dolma_gives(tmp_path):
    path = packed(tmp_path / "a.json.gz", b'{"id": "a", "text": "one"}\n{"id": "b", "text": "two"}\n')
    assert [r.id for r in read(path)] == ["a", "b"]
    with pytest.raises(ConfigError, match="cannot tell what"):
        find_inputs([str(packed(tmp_path / "a.json", b"{}"))])


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


@pytest.mark.parametrize("ending", ["", *PACK])
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
            expected.pop()  # nothing behind the last separator
        assert [(piece.start, piece.n_bytes, piece.data) for piece in found] == expected


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is absent")
@pytest.mark.parametrize("name", ["aeb-00000", "dolma-sample-0000", "resiliparse-warcfile", "whirlwind"])
def test_real_pages_are_those_that_fastwarc_reads(name):
    warc = pytest.importorskip("fastwarc.warc", reason="the extra 'dev' is not installed")
    path = SHARED / f"warc/{name}.warc.gz"
    expected = {}
    for record in warc.ArchiveIterator(str(path), parse_http=False, record_types=warc.WarcRecordType.response):
        record.freeze()
        record.parse_http(auto_decode="all")
        url = record.headers["WARC-Target-URI"].strip("<>")
        expected[record.headers["WARC-Record-ID"].strip("<>")] = (url, record.reader.read(), record.http_charset)
    pages = [r for r in read(path) if isinstance(r, Page)]
    found = {r.id: (r.metadata["url"], r.content, r.charset and r.charset.lower()) for r in pages}
    assert {name: found[name] for name in expected} == expected


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is absent")
def test_a_real_arc_is_what_warcio_reads():
    archives = pytest.importorskip("warcio.archiveiterator", reason="the extra 'dev' is not installed")
    path = SHARED / "warc/aut-example.arc.gz"
    found = read(path)
    assert kinds(found) == {"Page": 130, "not_html": 84, "http_status": 47, "not_a_page": 39}
    with open(path, "rb") as file:
        expected = [
            (record.rec_headers.get_header("uri"), record.content_stream().read())
            for record in archives.ArchiveIterator(file)
            if record.http_headers
            and record.http_headers.get_statuscode() == "200"
            and record.http_headers.get_header("Content-Type", "").startswith(("text/html", "text/plain"))
        ]
    assert [(r.metadata["url"], r.content) for r in found if isinstance(r, Page)] == expected


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
