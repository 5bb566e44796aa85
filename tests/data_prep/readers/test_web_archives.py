"""Read WARC, WET and ARC files, whole and damaged."""

import base64
import gzip
import hashlib
import random
from collections import Counter
from pathlib import Path

import pytest

from data_prep.documents.records import Dropped, Page
from data_prep.readers.archive_bytes import ArchiveBytes, RecordPosition
from data_prep.readers.archive_formats import ARC, WARC
from data_prep.readers.unpackers import Broken
from data_prep.readers.web_archives import read_web_archive

pytest.importorskip("isal", reason="the extra 'data' is not installed")
xxhash = pytest.importorskip("xxhash", reason="the extra 'data' is not installed")

SHARED = Path(__file__).parents[4] / "shared/data"


def read(path: Path, max_record_bytes: int = 16 << 20):
    return list(read_web_archive(path, max_record_bytes=max_record_bytes))


def kinds(records) -> dict[str, int]:
    return dict(Counter(r.reason if isinstance(r, Dropped) else type(r).__name__ for r in records))


def test_warc_gives_its_pages_and_counts_other_records(tmp_path, warc_record):
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
    assert len({r.id for r in (one, unpacked, plain, stored)}) == 4, "each record without an id gets one"


@pytest.mark.parametrize("packed_records", [True, False])
def test_a_truncated_warc_keeps_its_whole_records(tmp_path, warc_record, packed_records):
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
        else:  # the page itself is complete, only the bytes after it are missing
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
    positions = [(r.id.partition("@")[2], r.n_bytes) for r in records if isinstance(r, Dropped)]
    assert positions == [(str(len(good)), len(bad)), (str(3 * len(good) + len(bad)), len(b"no gzip member"))]
    stored = gzip.compress(warc_record(b"<p>" + b"x" * 60_000, packed=False), compresslevel=0)
    to_the_end_of_a_block = (1 << 16) + 4 - len(good) - len(stored)  # its last bytes then arrive before its checksum
    for length in (60_000, 60_000 + to_the_end_of_a_block):
        sums = bytearray(gzip.compress(warc_record(b"<p>" + b"x" * length, packed=False), compresslevel=0))
        sums[-6] ^= 1
        path.write_bytes(good + bytes(sums) + good)
        assert kinds(read(path)) == {"Page": 2, "damaged": 1}, "no record is used before its checksum is verified"
    assert len(good) + len(sums) == (1 << 16) + 4
    for name, reason in (("b.warc.gz", "damaged"), ("b.warc", "malformed"), ("b.arc", "malformed")):
        (tmp_path / name).write_bytes(b"this is no archive at all")
        assert kinds(read(tmp_path / name)) == {reason: 1}


def with_digest(record: bytes, kind: str, *, packed: bool = False) -> bytes:
    """The record with its WARC-Block-Digest, or its WARC-Payload-Digest."""
    head, _, block = record.removesuffix(b"\r\n\r\n").partition(b"\r\n\r\n")
    data = block if kind == "Block" else block.partition(b"\r\n\r\n")[2]
    digest = base64.b32encode(hashlib.sha1(data).digest())
    whole = head + b"\r\nWARC-%s-Digest: sha1:%s\r\n\r\n" % (kind.encode(), digest) + block + b"\r\n\r\n"
    return gzip.compress(whole) if packed else whole


@pytest.mark.parametrize("kind", ["Block", "Payload"])
def test_a_record_with_another_digest_than_its_content_is_damaged(tmp_path, warc_record, kind):
    """Every flip in the text of a plain WARC is noticed; without the digest, none would be."""
    rng, texts = random.Random(0), [f"<p>text {n} ".encode() + b"words " * 50 for n in range(3)]
    data = b"".join(with_digest(warc_record(text, packed=False), kind) for text in texts)
    path, start = tmp_path / "a.warc", data.index(texts[1])
    path.write_bytes(data)
    assert kinds(read(path)) == {"Page": 3}
    for _ in range(20):
        flipped = bytearray(data)
        flipped[start + rng.randrange(len(texts[1]))] ^= 1 << rng.randrange(5)
        path.write_bytes(flipped)
        assert kinds(read(path)) == {"Page": 2, "damaged": 1}
    assert kinds(read_web_archive(path, max_record_bytes=1 << 20, check_digests=False)) == {"Page": 3}
    path.write_bytes(data.replace(b"sha1:", b"sha3:"))
    assert kinds(read(path)) == {"Page": 3}, "an unknown kind of digest is not checked"


def test_the_name_of_the_format_may_be_in_any_case(tmp_path, warc_record):
    records = [warc_record(b"<p>one</p>", packed=False), b"nothing\r\n\r\n", warc_record(b"<p>two</p>", packed=False)]
    for ending, pack in ((".warc", bytes), (".warc.gz", gzip.compress)):
        path = tmp_path / f"a{ending}"
        path.write_bytes(b"".join(pack(record.replace(b"WARC/1.0", b"warc/1.0")) for record in records))
        assert kinds(read(path)) == {"Page": 2, "malformed": 1}, ending


def test_the_id_of_a_dropped_record_is_its_position(tmp_path, warc_record):
    """The id names the file by its digest in the manifest, so it survives moving and renaming the file."""
    first, gone = warc_record(b"<p>"), warc_record(b"gone", status="404 Not Found", record_id="urn:gone")
    data = first + warc_record(b"", kind="warcinfo") + gone
    (tmp_path / "a.warc.gz").write_bytes(data)
    (tmp_path / "b.warc.gz").write_bytes(data)
    _, info, missing = read(tmp_path / "a.warc.gz")
    assert info.id == f"file:{xxhash.xxh3_128(data).hexdigest()[:16]}@{len(first)}"
    assert (missing.id, missing.detail) == ("urn:gone", "404")
    assert read(tmp_path / "a.warc.gz") == read(tmp_path / "b.warc.gz")


def test_a_record_may_span_gzip_members_and_a_member_may_hold_several(tmp_path, warc_record):
    records = [warc_record(b"<p>" + bytes([65 + n]) * 5000, packed=False) for n in range(4)]
    data = b"".join(records)
    path = tmp_path / "a.warc.gz"
    for size in (700, 5000, 100_000):  # 5,000 and 700 do not divide the size of the records
        path.write_bytes(b"".join(gzip.compress(data[i : i + size]) for i in range(0, len(data), size)))
        assert [r.content[3] for r in read(path)] == [65, 66, 67, 68], size
    path.write_bytes(data)
    assert kinds(read(path)) == {"Page": 4}, "the content decides the format, not the name"


def arc_record(url: str, block: bytes, kind: str = "text/html") -> bytes:
    return f"{url} 192.0.2.1 20080430204825 {kind} {len(block)}\n".encode() + block + b"\n"


@pytest.mark.parametrize("packed_records", [True, False])
def test_arc_gives_its_pages(tmp_path, packed_records):
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


def test_records_above_the_size_limit_are_dropped(tmp_path, warc_record):
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


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is absent")
@pytest.mark.parametrize("name", ["aeb-00000", "dolma-sample-0000", "resiliparse-warcfile", "whirlwind"])
def test_real_pages_equal_those_of_fastwarc(name):
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
def test_a_real_arc_gives_the_pages_of_warcio():
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
def test_counts_of_real_archives(name, expected):
    assert kinds(read(SHARED / "warc" / name)) == expected


@pytest.mark.parametrize("packed", [True, False])
def test_bytes_are_read_forward_and_again_from_a_position(tmp_path, packed):
    parts = [bytes(range(256)) * 2000, b"second" * 50]
    path = tmp_path / ("a.gz" if packed else "a")
    path.write_bytes(b"".join(map(gzip.compress, parts)) if packed else b"".join(parts))
    with ArchiveBytes(path) as source:
        assert source.peek(3) == source.take(3) == parts[0][:3]
        assert source.position == RecordPosition(0, 3)
        assert source.skip(1000, limit=1 << 20) == 1000
        assert source.take(10) == parts[0][1003:1013]
        source.take(400_000)
        source.seek(RecordPosition(0, 5))  # no longer in memory
        assert source.take(4) == parts[0][5:9]
        if packed:
            assert source.skip(1 << 30, limit=1 << 30) == len(parts[0]) - 9, "no read goes beyond its member"
            assert source.next_member()
            assert str(source.position) == str(len(gzip.compress(parts[0])))
            assert source.take(1000) == parts[1]
            source.seek(RecordPosition(0, 0))
            with pytest.raises(Broken, match=r"too_large: more than 1 bytes unpacked"):
                source.skip(1 << 30, limit=1)


def test_heads_are_parsed_and_contradictions_are_errors():
    lines = b"WARC/1.0\r\nWARC-Type: Response\r\nContent-Length: 12\r\nWARC-Target-URI: <http://a/>\r\n\r\n"
    head = WARC.parse(lines)
    assert (head.kind, head.length, head.url, head.id) == ("response", 12, "http://a/", "")
    assert WARC.head_end(lines + b"body") == len(lines)
    assert WARC.head_end(lines[:-2]) is None
    with pytest.raises(ValueError, match="Content-Length is '-1'"):
        WARC.parse(lines.replace(b" 12", b" -1"))
    with pytest.raises(ValueError, match="two different values of content-length"):
        WARC.parse(lines[:-2] + b"Content-Length: 13\r\n\r\n")
    head = ARC.parse(b"http://a/ 192.0.2.1 20080430204825 text/html 77\n")
    assert (head.kind, head.length, head.date) == ("response", 77, "2008-04-30T20:48:25Z")
    with pytest.raises(ValueError, match="no ARC header line of five fields"):
        ARC.parse(b"http://a/ 192.0.2.1 text/html 77\n")
