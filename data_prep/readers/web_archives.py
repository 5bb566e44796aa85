"""Read the pages of WARC and ARC files and the texts of WET files, damaged ones too, one record at a time."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.documents.records import Dropped, Origin, Page, Unread, decode_utf8
from data_prep.documents.shards import Document, content_id
from data_prep.readers.archive_bytes import ArchiveBytes, RecordPosition
from data_prep.readers.archive_formats import ARC, HEAD_LIMIT, WARC, ArchiveFormat, RecordHead
from data_prep.readers.http_messages import read_response, split_content_type
from data_prep.readers.unpackers import Broken, reader_faults

HTML_TYPES = ("text/html", "application/xhtml+xml")
TEXT_TYPES = ("text/plain",)
_RECORD_END = b"\r\n\r\n"
_UNPACK_LIMIT = 1 << 29  # unpack at most this many unwanted bytes, then search for the next gzip member


class _BadRecord(Exception):
    """A record that cannot be used. `after`: where the search for the next one starts."""

    def __init__(self, reason: str, detail: str, n_bytes: int, *, after: RecordPosition, id: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail, self.n_bytes, self.id, self.after = reason, detail, n_bytes, id, after


def read_web_archive(
    path: Path, *, max_record_bytes: int, check_digests: bool = True
) -> Iterator[Page | Document | Dropped]:
    """Yield every record of a WARC, WET or ARC file: a page, a document, or the reason why it is neither.

    `truncated`: the file ends in it. `damaged`: its bytes cannot be unpacked, or with
    `check_digests` have another digest than its head gives. `wrong_length`: it is longer or shorter
    than its head says. `malformed`: it has no head, or one that contradicts itself. After each of these, reading
    continues with the next record it can find; in a packed file, with the next gzip member that starts a record.
    """
    origin, form = Origin(path), ARC if path.name.endswith((".arc", ".arc.gz")) else WARC
    with ArchiveBytes(path) as source, reader_faults(source):
        while True:
            start = None
            try:
                if not _go_to_record(source):
                    return
                start = source.position
                item = _read_record(source, form, origin, max_record_bytes, check_digests=check_digests)
            except _BadRecord as error:
                item = _resume(source, form, error, start or source.position, origin)
            except Broken as error:
                item = _resume_packed(source, form, error, start or source.position, origin)
            yield item


def _go_to_record(source: ArchiveBytes) -> bool:
    """Skip line ends between records, into the next member if one ends; False at the end of the file."""
    while True:
        while ahead := source.peek(64):
            n = len(ahead) - len(ahead.lstrip(b"\r\n"))
            source.take(n)
            if n < len(ahead):
                return True
        if not source.next_member():
            return False


def _resume_packed(
    source: ArchiveBytes, form: ArchiveFormat, error: Broken, start: RecordPosition, origin: Origin
) -> Dropped:
    """Skip bytes that cannot be unpacked: go to the next gzip member that starts a record, or to the file's end."""
    member = source.find_member(start.member + 1, form.starts)
    reason = "damaged" if error.reason == "truncated" and member is not None else error.reason
    end = source.n_bytes if member is None else member
    source.seek(RecordPosition(end, 0))
    n_bytes = end - start.member
    return origin.drop(reason, n_bytes, str(start), detail=error.detail, unread=Unread(n_bytes))


def _resume(
    source: ArchiveBytes, form: ArchiveFormat, bad: _BadRecord, start: RecordPosition, origin: Origin
) -> Dropped:
    """Go to the next record after a bad one, in its member or later; return the bad one as it is counted."""
    try:
        source.seek(bad.after)
        found = source.skip_to(form.mark, overlap=form.overlap, limit=_UNPACK_LIMIT)
    except Broken:
        error = Broken(bad.reason, bad.detail)
        return replace(_resume_packed(source, form, error, start, origin), id=bad.id or origin.position_id(str(start)))
    # A record that claims to reach beyond the end of the file is not cut off if others follow it.
    reason = "wrong_length" if found and bad.reason == "truncated" else bad.reason
    passed = max(source.position.inner - start.inner, 0)
    unread = None if source.packed else Unread(passed)  # in a packed file, these are not bytes of the file
    return origin.drop(reason, bad.n_bytes or passed, str(start), id=bad.id, detail=bad.detail, unread=unread)


def _read_record(
    source: ArchiveBytes, form: ArchiveFormat, origin: Origin, max_bytes: int, *, check_digests: bool
) -> Page | Document | Dropped:
    start = source.position
    head = _read_head(source, form)
    block_start = _before(
        source.position
    )  # including the line end before it, which the search for a directly following record needs
    wanted = head.kind in ("response", "resource", "conversion")
    block, n_bytes = b"", 0
    if wanted and head.length <= max_bytes:
        block = _take_block(source, form, head)
        n_bytes = len(block)
    else:
        n_bytes = _skip_block(source, form, head)
    if n_bytes < head.length:
        at_end = not source.packed or source.position.member >= source.n_bytes
        detail = f"says {head.length} bytes, has {n_bytes}"
        raise _BadRecord("truncated" if at_end else "wrong_length", detail, n_bytes, id=head.id, after=block_start)
    if not _ends_here(source, form):
        raise _BadRecord(
            "wrong_length", f"says {head.length} bytes, and others follow", 0, id=head.id, after=block_start
        )
    if not wanted:
        return origin.drop("not_a_page", head.length, str(start), id=head.id)
    if head.length > max_bytes:
        return origin.drop("too_large", head.length, str(start), id=head.id)
    if check_digests and not head.has_digest_of(block):
        return origin.drop("damaged", head.length, str(start), id=head.id, detail="its digest differs from its content")
    return _interpret(head, block, origin, start=str(start), max_bytes=max_bytes)


def _read_head(source: ArchiveBytes, form: ArchiveFormat) -> RecordHead:
    after = _next(source.position)
    before, size = b"", 1 << 11  # the part of the head in earlier members; how far to look
    while True:
        ahead = before + source.peek(size)
        if not form.starts(ahead):
            raise _BadRecord("malformed", f"no {form.name} record starts here", 0, after=after)
        end = form.head_end(ahead)
        if end is not None:
            break
        if len(ahead) >= HEAD_LIMIT:
            raise _BadRecord("malformed", f"a head of more than {HEAD_LIMIT} bytes", 0, after=after)
        if len(ahead) - len(before) < size:  # the member or the file ends in the head
            before += source.take(size)
            if not source.next_member() or form.starts(source.peek(32)):
                raise _BadRecord("malformed" if source.packed else "truncated", "it ends in its head", 0, after=after)
        else:
            size *= 4
    source.take(end - len(before))
    try:
        return form.parse(ahead[:end])
    except ValueError as error:
        raise _BadRecord("malformed", str(error), 0, after=after) from None


def _next(position: RecordPosition) -> RecordPosition:
    return RecordPosition(position.member, position.inner + 1)


def _before(position: RecordPosition) -> RecordPosition:
    return RecordPosition(position.member, position.inner - 1)


def _take_block(source: ArchiveBytes, form: ArchiveFormat, head: RecordHead) -> bytes:
    """Return the block, joined from several members if it spans them; fewer bytes than its head says if it is short."""
    pieces = [source.take(head.length)]
    missing = head.length - len(pieces[0])
    while missing and source.next_member() and not form.starts(source.peek(32)):
        pieces.append(source.take(missing))
        missing -= len(pieces[-1])
    return b"".join(pieces)


def _skip_block(source: ArchiveBytes, form: ArchiveFormat, head: RecordHead) -> int:
    n_bytes = source.skip(head.length, limit=_UNPACK_LIMIT)
    while n_bytes < head.length and source.next_member() and not form.starts(source.peek(32)):
        n_bytes += source.skip(head.length - n_bytes, limit=_UNPACK_LIMIT)
    return n_bytes


def _ends_here(source: ArchiveBytes, form: ArchiveFormat) -> bool:
    """Return whether a record ends where it should: before two line ends, or before line ends up to the next record.

    It may also end with its member, whose checksum has then passed.
    """
    if source.peek(4) == _RECORD_END:
        source.take(4)
        source.peek(1)  # checks the checksum of a member that ends here, before its record is used
        return True
    while ahead := source.peek(64):
        rest = ahead.lstrip(b"\r\n")
        if rest:
            return bool(form.starts(source.peek(len(ahead) - len(rest) + 32).lstrip(b"\r\n")))
        source.take(len(ahead))
    return True


def _interpret(
    head: RecordHead, block: bytes, origin: Origin, *, start: str, max_bytes: int
) -> Page | Document | Dropped:
    metadata: dict[str, Any] = {"url": head.url, "date": head.date}
    name = head.id or content_id("warc", head.url.encode(), head.date.encode(), block)
    if head.kind == "conversion":  # WET: text extracted by the crawl's owner, always UTF-8
        text = decode_utf8(block)
        if text is None:
            return origin.drop("not_utf8", len(block), start, id=head.id)
        return Document(name, text, metadata)
    if head.kind == "resource":
        kind, charset = split_content_type(head.content_type)
        return _typed(Page(name, block, charset, True, metadata), kind)
    try:
        response = read_response(block, max_bytes=max_bytes)
    except ValueError as error:
        if not head.content_type.lower().startswith("application/http"):  # for example the answer of a name server
            return Dropped("not_html", len(block), name)
        return origin.drop("malformed", len(block), start, id=head.id, detail=str(error))
    except OverflowError as error:  # a small record that unpacks into a huge page
        return origin.drop("too_large", len(block), start, id=head.id, detail=str(error))
    if response.status != 200:
        return Dropped("http_status", len(block), name, str(response.status))
    return _typed(Page(name, response.body, response.charset, True, metadata), response.content_type)


def _typed(page: Page, content_type: str) -> Page | Dropped:
    if content_type in HTML_TYPES or (not content_type and page.content[:512].lstrip().startswith(b"<")):
        return page
    if content_type in TEXT_TYPES:
        return replace(page, is_html=False)
    return Dropped("not_html", len(page.content), page.id, content_type[:80])
