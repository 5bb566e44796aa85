"""Read input made to harm: each record is kept or named with a reason, its neighbours stay, memory is bounded."""

import gzip
import json
import random
import re
import resource
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import pytest

from data_prep.documents.records import Dropped, Page
from data_prep.documents.shards import read_shard
from data_prep.documents.traces import read_trace
from data_prep.inputs.config import InputConfig
from data_prep.readers.readers import read_records

pytest.importorskip("isal", reason="the extra 'data' is not installed")
pytest.importorskip("resiliparse", reason="the extra 'data' is not installed")
zstandard = pytest.importorskip("zstandard", reason="the extra 'data' is not installed")
pyarrow = pytest.importorskip("pyarrow", reason="the extra 'data' is not installed")
parquet = pytest.importorskip("pyarrow.parquet")

MEMORY_LIMIT_BYTES = 512 << 20
GIB = 1 << 30
BOMB = 544 << 20
GOOD = b"<p>" + b"An ordinary page between the others. " * 20

# Run the extraction stage on each file of a folder in one process, and print the counts and the peak memory.
DRIVER = """
import json, resource, sys
from pathlib import Path
sys.path[:] = json.loads(sys.argv[1])
from data_prep.extraction.extract import ExtractTask, extract_file
from data_prep.extraction.page_text import ExtractConfig
from data_prep.inputs.config import InputConfig
for path in sorted(Path(sys.argv[2]).iterdir()):
    limit_s = 0.5 if path.name.startswith("deep") else 10.0
    config = ExtractTask(InputConfig(paths=("x",)), ExtractConfig(max_page_cpu_s=limit_s))
    out = Path(sys.argv[3]) / path.name
    out.mkdir()
    result = extract_file(config, (path,), (out / "shard", out / "trace"))
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    status = Path("/proc/self/status").read_text()  # getrusage would include the process that started this one
    own = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    peaks = [own * 1024, children * 1024]
    print(json.dumps({"name": path.name, "counts": [c.as_dict() for c in result.counts], "peak_bytes": max(peaks)}))
"""


def zeros(n_bytes: int, before: bytes = b"") -> bytes:
    """Make a gzip member of `before` and zeros, quickly; its checksum is wrong, but no reader gets that far."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    start = packer.compress(before) + packer.flush(zlib.Z_FULL_FLUSH)
    unit = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + unit * (n_bytes >> 24)


def zstd_line(n_bytes: int, after: bytes) -> bytes:
    """Make one line of zeros, then `after`."""
    packer = zstandard.ZstdCompressor(level=1).compressobj()
    block = bytes(1 << 24)
    return (
        b"".join(packer.compress(block) for _ in range(n_bytes >> 24)) + packer.compress(b"\n" + after) + packer.flush()
    )


def unpacked_head(url: str, length: int, extra: str = "") -> bytes:
    return (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2026-01-02T03:04:05Z\r\n{extra}"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


@pytest.fixture(scope="module")
def survived(tmp_path_factory, warc_record):
    """{file: (its counts and the peak of memory, its outputs)} after one process has read them all."""
    folder, out = tmp_path_factory.mktemp("hostile"), tmp_path_factory.mktemp("out")
    good = [warc_record(GOOD, record_id=f"urn:good:{n}") for n in range(3)]
    ok = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n"
    text = json.dumps({"id": "good", "text": "a good line"}).encode()

    def page(html: bytes, name: str, http: str = "Content-Type: text/html\r\n") -> bytes:
        return warc_record(html, record_id=f"urn:{name}", http=http)

    files = {
        "unpacks_to_gibibytes.warc.gz": (good[0], zeros(BOMB, unpacked_head("http://a/", 4 * GIB)), good[1]),
        "hides_zeros.warc.gz": (good[0], zeros(BOMB, unpacked_head("http://a/", 3) + b"abc"), good[1]),
        "no_end_of_head.warc.gz": (good[0], zeros(BOMB, b"WARC/1.0\r\nWARC-Type: response\r\n"), good[1]),
        "packed_body.warc.gz": (
            good[0],
            page(zeros(BOMB), "bomb", "Content-Type: text/html\r\nContent-Encoding: gzip\r\n"),
            good[1],
        ),
        "lines.jsonl.zst": (zstd_line(BOMB, text),),
        "lines.jsonl.gz": (zeros(BOMB),),
        "brackets.jsonl": (b'{"text": "a", "x": [' + b"{}," * 5_000_000 + b"0]}\n", b"[" * 10_000_000, b"\n" + text),
        "deep.warc.gz": (
            good[0],
            page(b"<div>" * 100_000 + b"x", "deep"),
            good[1],
        ),
        "large.warc.gz": (
            page(b"<table><tr><td>" * 1_000_000, "memory"),
            good[1],
            page(b"<pre>" + (b" " * 99 + b"x") * 20_000 + b" " * 1_000_000 + b"x", "blanks"),
            good[2],
        ),
        "head_of_a_megabyte.warc.gz": (
            good[0],
            gzip.compress(unpacked_head("http://a/" + "x" * (1 << 20), len(ok)) + ok + b"\r\n\r\n"),
            good[1],
        ),
    }
    for name, pieces in files.items():
        (folder / name).write_bytes(b"".join(pieces))
    with open(folder / "line.jsonl", "wb") as file:
        file.truncate(GIB)  # a line of zeros that takes no space on the disk
        file.seek(GIB)
        file.write(b"\n" + text)
    text_of_20_mb = pyarrow.array(["x" * 20_000_000])
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 26, pyarrow.int32()), text_of_20_mb)
    table = pyarrow.table({"text": column})
    parquet.write_table(table, folder / "one_text_26_times.parquet", compression="zstd", store_schema=False)
    command = [sys.executable, "-c", DRIVER, json.dumps(sys.path), str(folder), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(files) + 2
    return {entry["name"]: (entry, out / entry["name"]) for entry in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize(
    ("name", "read", "extract", "kept"),
    [
        ("unpacks_to_gibibytes.warc.gz", {"too_large": 1}, {}, 2),
        ("hides_zeros.warc.gz", {"wrong_length": 1}, {}, 2),
        ("no_end_of_head.warc.gz", {"malformed": 1}, {}, 2),
        ("packed_body.warc.gz", {"too_large": 1}, {}, 2),
        ("lines.jsonl.zst", {"too_large": 1}, {}, 1),
        ("lines.jsonl.gz", {"truncated": 1}, {}, 0),
        ("line.jsonl", {"too_large": 1}, {}, 1),
        ("brackets.jsonl", {"malformed": 2}, {}, 1),
        ("deep.warc.gz", {}, {"timed_out": 1}, 2),
        ("large.warc.gz", {}, {"out_of_memory": 1}, 3),
        ("head_of_a_megabyte.warc.gz", {"malformed": 1}, {}, 2),
        ("one_text_26_times.parquet", {"too_large": 26}, {}, 0),
    ],
)
def test_hostile_files_are_read_within_the_memory_limit(survived, name, read, extract, kept):
    entry, out = survived[name]
    reading, extracting = entry["counts"]
    assert (reading["dropped"], extracting["dropped"]) == (read, extract)
    assert len(list(read_shard(out / "shard"))) == extracting["documents_out"] == kept
    drops = list(read_trace(out / "trace"))
    assert Counter(drop.reason for drop in drops) == Counter(read) + Counter(extract)
    assert all(drop.id for drop in drops), "each is named"
    assert {drop.detail for drop in drops if drop.reason == "timed_out"} <= {"more than 0.5 s of processor time"}
    assert entry["peak_bytes"] < MEMORY_LIMIT_BYTES, f"{entry['peak_bytes'] >> 20} MiB"


def kinds(path: Path, **config) -> dict[str, int]:
    records = read_records(path, InputConfig(paths=("x",), **config))
    return dict(Counter(r.reason if isinstance(r, Dropped) else type(r).__name__ for r in records))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("change", [-300, -1, 7, 300, 10**6, 10**12])
def test_a_wrong_content_length_spoils_only_its_own_record(tmp_path, warc_record, packed, change):
    def lying(record: bytes) -> bytes:
        return re.sub(rb"Content-Length: (\d+)", lambda m: b"Content-Length: %d" % (int(m[1]) + change), record)

    first, bad, last = (warc_record(GOOD, record_id=f"urn:{n}", packed=False) for n in ("first", "bad", "last"))
    records = [first, lying(bad), last, first]
    path = tmp_path / ("a.warc.gz" if packed else "a.warc")
    path.write_bytes(b"".join(gzip.compress(record) if packed else record for record in records))
    found = list(read_records(path, InputConfig(paths=("x",))))
    assert [(type(r), r.id) for r in found] == [
        (Page, "urn:first"),
        (Dropped, "urn:bad"),
        (Page, "urn:last"),
        (Page, "urn:first"),
    ]
    assert found[1].reason == "wrong_length"
    assert f"at byte {len(gzip.compress(first)) if packed else len(first)}: says " in found[1].detail
    path.write_bytes(gzip.compress(b"".join(records)))  # all in one member, as plain gzip makes it
    if packed:
        assert kinds(path) == {"Page": 3, "wrong_length": 1}


def test_tricks_in_headers_have_no_effect(tmp_path, warc_record):
    """Names of files, other records' ids, control characters: nothing is written outside, and each record is named."""
    evil = ["../../../../tmp/evil", "/etc/passwd", "a\x00b", "urn:x\x1b[2J", "x" * 5000, "..", "con:aux", ""]
    injected = b"WARC-Target-URI: http://a/\r\nWARC-Record-ID: <urn:other>\r\nContent-Length: 5"
    records = [warc_record(GOOD + b"%d" % n, url=name, record_id=name, packed=False) for n, name in enumerate(evil)]
    records.append(records[0].replace(b"WARC-Target-URI: ", injected + b"\r\nX: "))
    records.append(records[0].replace(b"WARC/1.0", b"WARC/1.0\r\n WARC-Type: request\x00"))
    path = tmp_path / "in" / "a.warc"
    path.parent.mkdir()
    path.write_bytes(b"".join(records))
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", DRIVER, json.dumps(sys.path), str(path.parent), str(tmp_path / "out")]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == [
        "in/a.warc",
        "out/a.warc/shard",
        "out/a.warc/trace",
    ]
    documents, drops = list(read_shard(tmp_path / "out/a.warc/shard")), list(read_trace(tmp_path / "out/a.warc/trace"))
    assert len(documents) + len(drops) == len(records)
    assert [drop.reason for drop in drops] == ["malformed", "malformed"]
    assert "two different values of warc-record-id" in drops[0].detail
    ids = [document.id for document in documents]
    assert len(set(ids)) == len(evil), "equal records, equal ids"
    for text in [*ids, *(d.metadata["url"] for d in documents)]:
        assert len(text) <= 2048
        assert not re.search(r"[\x00-\x1f\x7f]", text)


def test_text_that_is_not_utf8_is_dropped_or_repaired(tmp_path):
    good = json.dumps({"id": "good", "text": "gut: ä"}, ensure_ascii=False).encode()
    (tmp_path / "a.jsonl").write_bytes(good + b'\n{"id": "bad", "text": "\xff\xfe"}\n' + good)
    assert kinds(tmp_path / "a.jsonl") == {"Document": 2, "not_utf8": 1}
    latin = "Die Straße führt über den Fluß.".encode("latin-1")
    (tmp_path / "a.txt").write_bytes(b"one\n\n" + latin + b"\n\n" + "ä".encode() * 60 + b"\xff")
    found = list(read_records(tmp_path / "a.txt", InputConfig(paths=("x",), text_separator="\n\n")))
    assert [getattr(r, "reason", None) or r.text for r in found] == ["one", "not_utf8", "ä" * 60 + "\ufffd"]
    assert re.fullmatch(r"file:[0-9a-f]{16}@5", found[1].id)


def test_an_endless_line_ends_the_reading_of_its_file(tmp_path):
    """After 128 times the limit the rest is dropped: reading a packed bomb to its end would take hours."""
    line = json.dumps({"text": "words"}).encode() + b"\n"
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(line + bytes(1_000_000) + b"\n" + line))
    assert kinds(tmp_path / "a.jsonl.zst", max_record_bytes=1000) == {"Document": 1, "too_large": 1}
    assert kinds(tmp_path / "a.jsonl.zst", max_record_bytes=8000) == {"Document": 2, "too_large": 1}


def damaged(records: list[bytes], rng: random.Random, packed: bool) -> tuple[bytes, int]:
    """Join the records, with bytes of one of them changed, removed or inserted; return the number of that one, too."""
    n = rng.randrange(len(records))
    pieces = [gzip.compress(record) if packed else record for record in records]
    piece = bytearray(pieces[n])
    for _ in range(rng.choice([1, 1, 2, 20])):
        at = rng.randrange(len(piece))
        kind = rng.randrange(4)
        if kind == 0:
            piece[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            piece[at : at + rng.randrange(1, 50)] = rng.randbytes(rng.randrange(1, 50))
        elif kind == 2:
            del piece[at : at + rng.randrange(1, 50)]
        else:
            piece[at:at] = rng.randbytes(rng.randrange(1, 50))
        if not piece:
            break
    return b"".join([*pieces[:n], bytes(piece), *pieces[n + 1 :]]), n


def fuzz(tmp_path: Path, warc_record, rounds: int) -> None:
    rng = random.Random(9)
    records = [warc_record(GOOD + b" %d" % n, record_id=f"urn:{n}", packed=False) for n in range(6)]
    for packed in (True, False):
        path = tmp_path / ("a.warc.gz" if packed else "a.warc")
        for _ in range(rounds):
            data, n = damaged(records, rng, packed)
            path.write_bytes(data)
            found = list(read_records(path, InputConfig(paths=("x",))))
            pages = {r.id for r in found if isinstance(r, Page)}
            others = {f"urn:{i}" for i in range(6)} - {f"urn:{n}"}
            if packed:
                assert others <= pages, (n, found)
            else:  # without gzip members, damage to a head or an end can also hide the next head
                assert len(others - pages) <= 1, (n, found)
            assert all(r.id for r in found)
            assert len(found) >= 5


def test_damage_spoils_only_the_record_it_hits(tmp_path, warc_record):
    fuzz(tmp_path, warc_record, 150)


@pytest.mark.rehearse
def test_damage_spoils_only_the_record_it_hits_at_full_count(tmp_path, warc_record):
    fuzz(tmp_path, warc_record, 10_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < 2 * MEMORY_LIMIT_BYTES
