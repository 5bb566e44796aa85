"""Reads the pages of WARC and ARC files and the texts of WET files, damaged ones too; holds one record at a time."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.documents.records import Dropped, Origin, Page, decode_utf8
from data_prep.documents.shards import Document, content_id
from data_prep.readers.archive_bytes import ArchiveBytes, RecordPosition
from data_prep.readers.archive_formats import ARC, HEAD_LIMIT, WARC, Format, Head
from data_prep.readers.compressed import Broken
from data_prep.readers.http_messages import read_response, split_content_type

HTML_TYPES = ("text/html", "application/xhtml+xml")
TEXT_TYPES = ("text/plain",)
_RECORD_END = b"\r\n\r\n"
_UNPACK_LIMIT = 1 << 29  # bytes that are unpacked of what is not wanted; then the next gzip member is looked for


class _Bad(Exception):
    """A record that cannot be used. `after`: where to look for the next one."""

    def __init__(self, reason: str, detail: str, n_bytes: int, *, after: RecordPosition, id: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail, self.n_bytes, self.id, self.after = reason, detail, n_bytes, id, after


def read_web_archive(path: Path, *, max_record_bytes: int) -> Iterator[Page | Document | Dropped]:
    """Every record of a WARC, WET or ARC file, as a page, a text, or the reason why it is neither.

    `truncated`: the file ends in it. `damaged`: its bytes cannot be unpacked. `wrong_length`: it is longer or shorter
    than it says. `malformed`: it has no head, or one that contradicts itself. After each of these reading goes on with
    the next record that can be found, in a packed file with the next gzip member that starts one.
    """
    origin, form = Origin(path), ARC if path.name.endswith((".arc", ".arc.gz")) else WARC
    with ArchiveBytes(path) as source:
        while True:
            start = None
            try:
                if not _go_to_record(source):
                    return
                start = source.place
                item = _read_record(source, form, origin, max_record_bytes)
            except _Bad as error:
                item = _resume(source, form, error, start or source.place, origin)
            except Broken as error:
                item = _resume_packed(source, form, error, start or source.place, origin)
            yield item


def _go_to_record(source: ArchiveBytes) -> bool:
    """Skip line ends between records, and go into the next member at the end of one; False at the end of the file."""
    while True:
        while ahead := source.peek(64):
            n = len(ahead) - len(ahead.lstrip(b"\r\n"))
            source.take(n)
            if n < len(ahead):
                return True
        if not source.next_member():
            return False


def _resume_packed(source: ArchiveBytes, form: Format, error: Broken, start: RecordPosition, origin: Origin) -> Dropped:
    """Go to the next gzip member that starts a record, or to the end of the file, past what cannot be unpacked."""
    member = source.find_member(start.member + 1, form.starts)
    reason = "damaged" if error.reason == "truncated" and member is not None else error.reason
    end = source.n_bytes if member is None else member
    source.seek(RecordPosition(end, 0))
    return origin.drop(reason, end - start.member, str(start), detail=error.detail)


def _resume(source: ArchiveBytes, form: Format, bad: _Bad, start: RecordPosition, origin: Origin) -> Dropped:
    """Go to the next record behind a bad one, in its member or after that; the bad one as it is counted."""
    try:
        source.seek(bad.after)
        found = source.skip_to(form.mark, overlap=form.overlap, limit=_UNPACK_LIMIT)
    except Broken:
        error = Broken(bad.reason, bad.detail)
        return replace(_resume_packed(source, form, error, start, origin), id=bad.id or origin.place(str(start)))
    # What claimed to go beyond the end of the file was not cut off if there are others behind it.
    reason = "wrong_length" if found and bad.reason == "truncated" else bad.reason
    n_bytes = bad.n_bytes or max(source.place.inner - start.inner, 0)
    return origin.drop(reason, n_bytes, str(start), id=bad.id, detail=bad.detail)


def _read_record(source: ArchiveBytes, form: Format, origin: Origin, max_bytes: int) -> Page | Document | Dropped:
    start = source.place
    head = _read_head(source, form)
    block_start = _before(source.place)  # with the line end before it, which a record that follows at once needs
    wanted = head.kind in ("response", "resource", "conversion")
    block, n_bytes = b"", 0
    if wanted and head.length <= max_bytes:
        block = _take_block(source, form, head)
        n_bytes = len(block)
    else:
        n_bytes = _skip_block(source, form, head)
    if n_bytes < head.length:
        at_end = not source.packed or source.place.member >= source.n_bytes
        detail = f"says {head.length} bytes, has {n_bytes}"
        raise _Bad("truncated" if at_end else "wrong_length", detail, n_bytes, id=head.id, after=block_start)
    if not _ends_here(source, form):
        raise _Bad("wrong_length", f"says {head.length} bytes, and others follow", 0, id=head.id, after=block_start)
    if not wanted:
        return origin.drop("not_a_page", head.length, str(start), id=head.id)
    if head.length > max_bytes:
        return origin.drop("too_large", head.length, str(start), id=head.id)
    return _interpret(head, block, origin, start=str(start), max_bytes=max_bytes)


def _read_head(source: ArchiveBytes, form: Format) -> Head:
    after = _next(source.place)
    before, size = b"", 1 << 11  # what earlier members hold of the head; how far to look
    while True:
        ahead = before + source.peek(size)
        if not form.starts(ahead):
            raise _Bad("malformed", f"no {form.name} record starts here", 0, after=after)
        end = form.head_end(ahead)
        if end is not None:
            break
        if len(ahead) >= HEAD_LIMIT:
            raise _Bad("malformed", f"a head of more than {HEAD_LIMIT} bytes", 0, after=after)
        if len(ahead) - len(before) < size:  # the member or the file ends in it
            before += source.take(size)
            if not source.next_member() or form.starts(source.peek(32)):
                raise _Bad("malformed" if source.packed else "truncated", "it ends in its head", 0, after=after)
        else:
            size *= 4
    source.take(end - len(before))
    try:
        return form.parse(ahead[:end])
    except ValueError as error:
        raise _Bad("malformed", str(error), 0, after=after) from None


def _next(place: RecordPosition) -> RecordPosition:
    return RecordPosition(place.member, place.inner + 1)


def _before(place: RecordPosition) -> RecordPosition:
    return RecordPosition(place.member, place.inner - 1)


def _take_block(source: ArchiveBytes, form: Format, head: Head) -> bytes:
    """The block, from several members if it goes on in the next one; fewer bytes than its head says if it is short."""
    pieces = [source.take(head.length)]
    missing = head.length - len(pieces[0])
    while missing and source.next_member() and not form.starts(source.peek(32)):
        pieces.append(source.take(missing))
        missing -= len(pieces[-1])
    return b"".join(pieces)


def _skip_block(source: ArchiveBytes, form: Format, head: Head) -> int:
    n_bytes = source.skip(head.length, limit=_UNPACK_LIMIT)
    while n_bytes < head.length and source.next_member() and not form.starts(source.peek(32)):
        n_bytes += source.skip(head.length - n_bytes, limit=_UNPACK_LIMIT)
    return n_bytes


def _ends_here(source: ArchiveBytes, form: Format) -> bool:
    """Whether a record ends where it should: before two line ends, or with line ends up to the next record or the
    member's end, which its sum has then passed."""
    if source.peek(4) == _RECORD_END:
        source.take(4)
        source.peek(1)  # checks the sum of a member that ends here, before its record is used
        return True
    while ahead := source.peek(64):
        rest = ahead.lstrip(b"\r\n")
        if rest:
            return bool(form.starts(source.peek(len(ahead) - len(rest) + 32).lstrip(b"\r\n")))
        source.take(len(ahead))
    return True


def _interpret(head: Head, block: bytes, origin: Origin, *, start: str, max_bytes: int) -> Page | Document | Dropped:
    metadata: dict[str, Any] = {"url": head.url, "date": head.date}
    name = head.id or content_id("warc", head.url.encode(), head.date.encode(), block)
    if head.kind == "conversion":  # WET: the text that the crawl's owner extracted, always UTF-8
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
        if not head.content_type.lower().startswith("application/http"):  # a name server's answer, for one
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
