"""Reads the pages of WARC files and the texts of WET files, cut-off ones too; never holds more than one record."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.compressed import gzip_members
from data_prep.documents import Document, content_id, whole_text
from gpt.errors import import_extra

HTML_TYPES = ("text/html", "application/xhtml+xml")
TEXT_TYPES = ("text/plain",)
_ARCHIVE_HEADER_LIMIT = 1 << 16
_HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True)
class Page:
    """A web page as it was fetched: bytes, with the character set that the server named or None."""

    id: str
    content: bytes
    charset: str | None
    is_html: bool
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Dropped:
    """A record that gives no document, and why; `id` is empty when the record brings none."""

    reason: str
    n_bytes: int
    id: str = ""
    detail: str = ""


def read_web_archive(path: Path, *, max_record_bytes: int) -> Iterator[Page | Document | Dropped]:
    """Every record of a WARC or WET file, as a page, a text, or the reason why it is neither.

    A record that the file does not finish is dropped as `truncated`, also when its gzip stream ends early, where the
    archive library returns what there is without an error. After damage inside the file (`damaged`) what
    follows cannot be found again and is not read.
    """
    warc = import_extra("fastwarc.warc", extra="data")
    last_start, last_length = -1, 0
    iterator = iter(warc.ArchiveIterator(str(path), parse_http=False, max_header_len=_ARCHIVE_HEADER_LIMIT))
    while True:
        try:
            record = next(iterator)
            last_start, last_length = record.stream_pos, record.content_length
            item, cut_off = _read_record(record, warc.WarcRecordType, max_record_bytes)
        except StopIteration:
            break
        except OSError as error:
            if error.errno is not None:  # the disk, not the data
                raise
            yield Dropped("truncated" if _is_cut_after(path, last_start, last_length) else "damaged", 0)
            return
        if cut_off or (last_length == 0 and _is_cut_within(path, last_start)):
            yield Dropped("truncated", last_length)
            return
        yield item
    if _is_cut_after(path, last_start, last_length):  # what is there of the next record was too little to be seen
        yield Dropped("truncated", 0)


def _is_cut_within(path: Path, start: int) -> bool:
    """Whether the record at `start`, which looks empty, is one of which only a part of the head is there."""
    if path.suffix == ".gz":
        return gzip_members(path, start) == (0, "cut")
    return _HEAD_END not in _read_from(path, start)


def _is_cut_after(path: Path, start: int, length: int) -> bool:
    """Whether the file ends in the head of a record after the last one, at `start` (-1: none) with `length` bytes."""
    if path.suffix == ".gz":
        return gzip_members(path, max(start, 0)) == (int(start >= 0), "cut")
    next_start = 0
    if start >= 0:
        head, mark, _ = _read_from(path, start).partition(_HEAD_END)
        next_start = start + len(head) + len(mark) + length
    rest = _read_from(path, next_start).lstrip(b"\r\n")
    return b"WARC/"[: len(rest)] == rest[:5] and 0 < len(rest) < _ARCHIVE_HEADER_LIMIT and _HEAD_END not in rest


def _read_from(path: Path, start: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(_ARCHIVE_HEADER_LIMIT)


def _read_record(record: Any, kinds: Any, max_record_bytes: int) -> tuple[Page | Document | Dropped, bool]:
    """(the record, whether the file ends within it)."""
    size = int(record.content_length)
    if record.record_type not in (kinds.response, kinds.resource, kinds.conversion):
        return Dropped("not_a_page", size), False
    if size > max_record_bytes:
        return Dropped("too_large", size), False
    record.freeze()  # into memory, so that its length can be checked before it is parsed
    block = record.reader.read()
    if len(block) < size:
        return Dropped("truncated", size), True
    metadata = {
        "url": whole_text(record.headers.get("WARC-Target-URI") or "").strip("<>"),
        "date": whole_text(record.headers.get("WARC-Date") or ""),
    }
    record_id = record.record_id or content_id("warc", metadata["url"].encode(), metadata["date"].encode(), block)
    record_id = whole_text(record_id).strip("<>")
    if record.record_type == kinds.conversion:  # WET: the text that the crawl's owner extracted, always UTF-8
        return Document(record_id, block.decode("utf-8", "replace"), metadata), False
    if record.record_type == kinds.resource:
        kind, _, parameters = (record.headers.get("Content-Type") or "").partition(";")
        charset = parameters.partition("charset=")[2].strip(" '\"") or None
        return _typed(Page(record_id, block, charset, True, metadata), kind.strip().lower()), False
    record.reader.seek(0)
    return _read_response(record, record_id, metadata, max_record_bytes=max_record_bytes), False


def _read_response(
    record: Any, record_id: str, metadata: dict[str, Any], *, max_record_bytes: int
) -> Page | Document | Dropped:
    size = int(record.content_length)
    try:
        record.parse_http(auto_decode="all", max_header_len=_ARCHIVE_HEADER_LIMIT)
        if record.http_headers is None:
            return Dropped("malformed", size)
        if record.http_headers.status_code != 200:
            return Dropped("http_status", size)
        body = record.reader.read(max_record_bytes + 1)
    except (OSError, ValueError):
        return Dropped("malformed", size)
    if len(body) > max_record_bytes:  # a small record that unpacks into a huge page
        return Dropped("too_large", size)
    page = Page(record_id, body, record.http_charset, True, metadata)
    return _typed(page, (record.http_content_type or "").lower())


def _typed(page: Page, content_type: str) -> Page | Dropped:
    if content_type in HTML_TYPES or (not content_type and page.content[:512].lstrip().startswith(b"<")):
        return page
    if content_type in TEXT_TYPES:
        return replace(page, is_html=False)
    return Dropped("not_html", len(page.content))
