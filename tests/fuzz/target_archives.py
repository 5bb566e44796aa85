"""Input files of `triaxial prepare`, each in a form that a reader knows, and the files that its stages pass on."""

import bz2
import gzip
import json
import lzma
from functools import partial
from pathlib import Path

from fuzzing import Target

from data_prep.documents.quarantine import Quarantine, quarantine_path, read_quarantine
from data_prep.documents.records import Dropped
from data_prep.documents.shards import DamagedShardError, Document, read_shard, write_shard
from data_prep.documents.traces import Drop, read_trace, write_trace
from data_prep.inputs.config import InputConfig
from data_prep.inputs.find import find_inputs
from data_prep.readers.readers import read_records
from gpt.errors import ConfigError

LINES = [json.dumps({"id": f"id{n}", "text": f"the text of line {n} ü", "url": "http://x"}) for n in range(6)]
HTTP = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(
    b"<p>page</p>" * 9
)
PACKED = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def record(kind: str, body: bytes, content_type: str) -> bytes:
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{len(body)}>\r\nWARC-Target-URI: http://x/\r\n"
    head += f"WARC-Date: 2026-01-02T03:04:05Z\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body + b"\r\n\r\n"


def write_archive(folder: Path, *, name: str) -> None:
    """Web archives, packed record by record or not."""
    responses = [record("response", HTTP, "application/http; msgtype=response") for _ in range(3)]
    texts = [record("conversion", b"a plain text of a page", "text/plain") for _ in range(3)]
    records = texts if ".wet" in name else responses
    (folder / name).write_bytes(b"".join(gzip.compress(one) if name.endswith(".gz") else one for one in records))


def write_lines(folder: Path, *, name: str) -> None:
    """JSON lines, or a text, with the packing that the name says."""
    data = "\n".join(LINES).encode()
    if name.endswith(".zst"):
        import zstandard

        packed = zstandard.ZstdCompressor(write_checksum=True).compress(data)
    else:
        packed = PACKED[name[name.rindex(".") :] if name.endswith((".gz", ".bz2", ".xz")) else ""](data)
    (folder / name).write_bytes(packed)


def write_table(folder: Path) -> None:
    """A Parquet file of two row groups."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"id": [f"id{n}" for n in range(8)], "text": [f"text {n}" for n in range(8)]})
    parquet.write_table(table, folder / "a.parquet", row_group_size=4)


def read_input(folder: Path) -> None:
    """As a run finds its inputs, and its extraction stage reads one to its end."""
    for path in find_inputs([str(path) for path in folder.iterdir()]):
        found = read_records(path, InputConfig(paths=("-",), text_separator="\n"))
        dropped = [record for record in found if isinstance(record, Dropped)]
        if dropped:
            raise ConfigError(f"{dropped[0].reason}: {len(dropped)} records")  # noticed, as the run's table says


def write_stage(folder: Path) -> None:
    """The files of a stage: a shard, a trace and failed documents."""
    with write_shard(folder / "a.jsonl.zst") as write, write_trace(folder / "a.dropped.jsonl.zst") as trace:
        for n in range(20):
            write(Document(f"id{n}", f"the text {n}", {"url": "http://x"}))
            trace.add(Drop(f"other{n}", "step", "reason", n))
    with Quarantine("step", [folder / "a"], [folder / "a"]) as quarantine:
        quarantine.add(Document("bad", "text"), ValueError("a reason"))
    quarantine_path(folder / "a").rename(folder / "a.jsonl")


def read_stage(folder: Path) -> None:
    """As the next stage and the reports read them."""
    list(read_shard(folder / "a.jsonl.zst"))
    list(read_trace(folder / "a.dropped.jsonl.zst"))
    list(read_quarantine(folder / "a.jsonl"))


_NEEDS = ("zstandard", "xxhash", "isal")
TARGETS = (
    *(
        Target(f"input_{name}", partial(write_archive, name=name), read_input, cases=40, needs=_NEEDS)
        for name in ("a.warc", "a.warc.gz", "a.wet.gz")
    ),
    *(
        Target(f"input_{name}", partial(write_lines, name=name), read_input, cases=30, needs=_NEEDS)
        for name in ("a.jsonl", "a.jsonl.zst", "a.jsonl.gz", "a.txt", "a.txt.bz2", "a.txt.xz")
    ),
    Target("input_a.parquet", write_table, read_input, cases=3, needs=("pyarrow", "xxhash")),
    Target("stage_files", write_stage, read_stage, allowed=(DamagedShardError,), cases=60, needs=_NEEDS),
)
