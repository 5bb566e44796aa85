"""Find and parse the heads of records in WARC (ISO 28500) and ARC version 1 files."""

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from data_prep.documents.records import shown, usable_id
from data_prep.readers.http_messages import parse_headers

HEAD_LIMIT = 1 << 16  # bytes
_LENGTH = re.compile(r"[0-9]{1,18}")
_WARC_HEAD_END = re.compile(rb"\r?\n\r?\n")
# If two values differ, one came in through a line break inside another value.
_NAMED_ONCE = frozenset(("warc-type", "warc-record-id", "warc-target-uri", "content-length"))
_ARC_LINE = re.compile(
    rb"(?P<url>[A-Za-z][A-Za-z0-9+.-]{1,15}:[^\r\n]{0,8000}) (?P<ip>[0-9A-Fa-f.:]{2,45}|-) (?P<date>[0-9]{8,14}) "
    rb"(?P<type>[^ \r\n]{1,200}) (?P<length>[0-9]{1,18})\r?\n"
)


@dataclass(frozen=True)
class RecordHead:
    """A record's own facts. `kind`: a WARC-Type. `length`: bytes of its block. Text that is missing is "".

    `block_digest` and `payload_digest`: of the block, and of the part of it after the HTTP headers, as `sha1:BASE32`.
    """

    kind: str
    length: int
    id: str
    url: str
    date: str
    content_type: str
    block_digest: str = ""
    payload_digest: str = ""

    def has_digest_of(self, block: bytes) -> bool:
        """Return whether the block has the digest that the head gives, if it gives one that we can compute.

        A payload's digest is used if the block has none. It is not used for chunked payloads: tools disagree on them.
        """
        if self.block_digest or self.kind != "response":
            return _agrees(self.block_digest or self.payload_digest, block)
        head, _, payload = block.partition(b"\r\n\r\n")
        return b"transfer-encoding" in head.lower() or _agrees(self.payload_digest, payload)


def _agrees(digest: str, data: bytes) -> bool:
    kind, _, value = digest.partition(":")
    if kind.lower().replace("-", "") not in ("md5", "sha1", "sha256", "sha512"):
        return True
    found = hashlib.new(kind.lower().replace("-", ""), data, usedforsecurity=False)
    base32 = base64.b32encode(found.digest()).decode().rstrip("=")
    known = {2 * found.digest_size: found.hexdigest(), len(base32): base32.lower()}
    value = value.rstrip("=").lower()
    return known.get(len(value), value) == value


@dataclass(frozen=True)
class ArchiveFormat:
    """The rules by which the heads of one format are found and parsed.

    `starts` accepts the first bytes of a record, also if the end of the file cuts them off. `mark` finds the next
    record in a stream: it matches from the line end before the record, at most `overlap` bytes. `head_end` gives the
    length of a head, or None if the bytes do not hold all of it. `parse` reads a head (ValueError).
    """

    name: str
    starts: Callable[[bytes], object]
    mark: re.Pattern[bytes]
    overlap: int
    head_end: Callable[[bytes], int | None]
    parse: Callable[[bytes], RecordHead]


def _warc_head_end(data: bytes) -> int | None:
    end = _WARC_HEAD_END.search(data)
    return None if end is None else end.end()


def _parse_warc(head: bytes) -> RecordHead:
    _, _, lines = head.partition(b"\n")
    values = parse_headers(lines, once=_NAMED_ONCE)
    length = values.get("content-length", "")
    if not _LENGTH.fullmatch(length):
        raise ValueError(f"Content-Length is '{shown(length, 40)}'")
    return RecordHead(
        kind=values.get("warc-type", "").lower(),
        length=int(length),
        id=usable_id(values.get("warc-record-id", "").strip("<>")),
        url=shown(values.get("warc-target-uri", "")).strip("<>"),
        date=shown(values.get("warc-date", ""), 40),
        content_type=values.get("content-type", ""),
        block_digest=values.get("warc-block-digest", "").strip(),
        payload_digest="" if "warc-truncated" in values else values.get("warc-payload-digest", "").strip(),
    )


def _arc_head_end(data: bytes) -> int | None:
    end = data.find(b"\n")
    return None if end < 0 else end + 1


def _parse_arc(head: bytes) -> RecordHead:
    line = _ARC_LINE.fullmatch(head)
    if line is None:
        raise ValueError("no ARC header line of five fields")
    date = line["date"].decode()
    url = shown(line["url"].decode("utf-8", "replace"))
    return RecordHead(
        kind="response" if url.lower().startswith(("http:", "https:")) else "other",  # filedesc:, dns:, ftp:
        length=int(line["length"]),
        id="",
        url=url,
        date=_iso_date(date),
        content_type="application/http",  # the line gives the type of the page, as do the headers of the block
    )


def _iso_date(digits: str) -> str:
    if len(digits) != 14:
        return digits
    year, month, day, hour, minute, second = (
        digits[i:j] for i, j in ((0, 4), (4, 6), (6, 8), (8, 10), (10, 12), (12, 14))
    )
    return f"{year}-{month}-{day}T{hour}:{minute}:{second}Z"


WARC = ArchiveFormat(
    name="WARC",
    starts=re.compile(rb"WARC/[0-9]|W(?:A(?:R(?:C/?)?)?)?\Z", re.IGNORECASE).match,
    mark=re.compile(rb"\nWARC/[0-9]\.[0-9]{1,2}\r?\n", re.IGNORECASE),
    overlap=16,
    head_end=_warc_head_end,
    parse=_parse_warc,
)
ARC = ArchiveFormat(
    name="ARC",
    starts=re.compile(rb"[A-Za-z][A-Za-z0-9+.-]{0,15}(?::|\Z)").match,
    mark=re.compile(rb"\n" + _ARC_LINE.pattern),
    overlap=8400,
    head_end=_arc_head_end,
    parse=_parse_arc,
)
