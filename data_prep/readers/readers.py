"""Read the records of input files, each kind of file by its ending."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from data_prep.documents.records import (
    Dropped,
    Origin,
    Page,
    Unread,
    decode_text,
    from_fields,
    no_text,
    usable_id,
    wide_encoding,
)
from data_prep.documents.shards import Document, content_id
from data_prep.inputs.config import InputConfig, kind_of
from data_prep.readers.compressed import (
    PACKINGS,
    Gap,
    StreamPart,
    cut_stream,
    recoded,
    salvaged_blocks,
    split_stream,
)
from data_prep.readers.json_lists import BrokenList, is_list, list_elements
from data_prep.readers.parquet_files import read_parquet, read_parquet_rows
from data_prep.readers.unpackers import Broken, Packed, reader_faults
from data_prep.readers.web_archives import read_web_archive
from gpt.files.json_text import decode_json

NOT_UTF8 = "not_utf8"  # reason: a text is neither UTF-8 nor in `input.encoding`
# A line of 16 MiB can hold millions of JSON values, and reading each of them takes about 100 bytes of memory.
_LONG_LINE, _MAX_VALUES = 1 << 20, 1_500_000
# A multiple of max_record_bytes: after this much of one line or text (some seconds), the rest of the file is dropped.
_GIVE_UP = {".bz2": 16, ".xz": 16}
_GIVE_UP_FAST = 128

T = TypeVar("T")


@dataclass(frozen=True)
class FieldRecord:
    """A record of named values: its bytes, its position as `Origin.drop` takes it, and a JSON object's values."""

    values: dict[str, Any]
    n_bytes: int
    offset: int


def read_records(path: Path, config: InputConfig) -> Iterator[Page | Document | Dropped]:
    """Yield every record of an input file: a page, a document, or why it is neither, with its position in the file.

    Positions in compressed text and JSON lines are offsets in the unpacked content.
    """
    kind = kind_of(path.name, config.endings)
    if kind == "web archive":
        limit, check = config.max_record_bytes, config.check_digests
        yield from read_web_archive(path, max_record_bytes=limit, check_digests=check)
    elif kind == "parquet":
        columns = (config.text_field, config.id_field)
        yield from read_parquet(path, *columns, max_record_bytes=config.max_record_bytes)
    else:
        readers: dict[str, Callable[[StreamPart, InputConfig, Origin], Page | Document | Dropped]]
        readers = {"json lines": _json_document, "page": _page, "text": _text_document}
        read = readers[kind]
        yield from _read_stream(path, config, kind, read)


def read_fields(path: Path, config: InputConfig) -> Iterator[FieldRecord | Dropped]:
    """Yield every record of a file of JSON lines or Parquet with all its values, or why it has none."""
    if kind_of(path.name, config.endings) == "parquet":
        for found in read_parquet_rows(path, max_record_bytes=config.max_record_bytes):
            yield found if isinstance(found, Dropped) else FieldRecord(found[1], found[2], found[0])
    elif is_list(_beginning(path, config)):
        yield from _read_list(path, config)
    else:
        yield from _read_stream(path, config, "json lines", _json_fields)


def _beginning(path: Path, config: InputConfig) -> bytes:
    with Packed(path) as packed, suppress(Broken):
        for block in salvaged_blocks(packed, path.suffix, max_window_bytes=config.max_window_bytes):
            return block if isinstance(block, bytes) else b""
    return b""


def _read_list(path: Path, config: InputConfig) -> Iterator[FieldRecord | Dropped]:
    """Yield the elements of a file that is one JSON list; their positions are their numbers."""
    origin, number = Origin(path), -1
    with Packed(path) as packed, reader_faults(packed):
        blocks = salvaged_blocks(packed, path.suffix, max_window_bytes=config.max_window_bytes)
        try:
            for number, (value, n_bytes) in enumerate(list_elements(blocks, max_bytes=config.max_record_bytes)):
                if isinstance(value, dict):
                    yield FieldRecord(value, n_bytes, number)
                else:
                    yield origin.drop("malformed", n_bytes, number, detail="no JSON object")
        except (Broken, BrokenList) as error:
            left = Unread(packed.n_bytes - packed.at + (error.n_left if isinstance(error, BrokenList) else 0))
            detail = f"the list cannot be read from element {number + 2} on"
            yield origin.drop(error.reason, 0, number + 1, detail=detail, unread=left)


def _read_stream(
    path: Path, config: InputConfig, kind: str, read: Callable[[StreamPart, InputConfig, Origin], T]
) -> Iterator[T | Dropped]:
    origin = Origin(path)
    is_cut = kind == "json lines" or (kind == "text" and (config.separator or config.text_split_bytes))
    with Packed(path) as packed, reader_faults(packed):
        blocks = salvaged_blocks(packed, path.suffix, max_window_bytes=config.max_window_bytes)
        first = next(blocks, b"")
        wide = wide_encoding(first, config.encoding) if isinstance(first, bytes) and kind != "page" else ""
        blocks = chain([first], blocks)
        if wide:
            parts = _parts(recoded(blocks, wide), path, replace(config, encoding=""), kind)
        else:
            parts = _parts(blocks, path, config, kind)
        try:
            for part in parts:
                if path.suffix not in PACKINGS and not wide:
                    packed.block_start = part.start  # here the position is known exactly
                if isinstance(part, Gap):
                    yield origin.drop(part.reason, 0, part.start, detail=part.detail, unread=Unread(part.n_bytes))
                    if not is_cut:  # the whole file is one document
                        return
                elif part.data is None:
                    yield origin.drop("too_large", part.n_bytes, part.start)
                elif part.data.strip():
                    record = read(part, config, origin)
                    if not (part.cut and (isinstance(record, Dropped) or kind == "text")):  # else it is of the gap
                        yield record
        except Broken as error:
            rest = Unread(packed.n_bytes - packed.at)
            yield origin.drop(error.reason, 0, error.start, detail=error.detail, unread=rest)


def _parts(blocks: Iterable[bytes | Gap], path: Path, config: InputConfig, kind: str) -> Iterator[StreamPart | Gap]:
    """Yield the lines, documents or the whole of a stream."""
    if kind == "text" and config.text_split_bytes:
        yield from cut_stream(blocks, config.text_split_bytes, config.encoding)
        return
    yield from split_stream(
        blocks,
        {"json lines": b"\n", "page": b""}.get(kind, config.separator),
        max_bytes=config.max_record_bytes,
        give_up_bytes=config.max_record_bytes * _GIVE_UP.get(path.suffix, _GIVE_UP_FAST),
    )


def _json_document(part: StreamPart, config: InputConfig, origin: Origin) -> Document | Dropped:
    values = _json_value(part, config, origin)
    if isinstance(values, Dropped):
        return values
    document = from_fields(values, text_field=config.text_field, id_field=config.id_field)
    if document is None:
        given = usable_id(values.get(config.id_field)) if isinstance(values, dict) else ""
        detail = no_text(values, config.text_field)
        return origin.drop("malformed", part.n_bytes, part.start, id=given, detail=detail)
    return document


def _json_fields(part: StreamPart, config: InputConfig, origin: Origin) -> FieldRecord | Dropped:
    values = _json_value(part, config, origin)
    if isinstance(values, Dropped):
        return values
    if not isinstance(values, dict):
        return origin.drop("malformed", part.n_bytes, part.start, detail="no JSON object")
    return FieldRecord(values, part.n_bytes, part.start)


def _json_value(part: StreamPart, config: InputConfig, origin: Origin) -> Any:
    """Return the value of a line, or why it has none as a `Dropped`."""
    assert part.data is not None
    if part.n_bytes > _LONG_LINE and sum(map(part.data.count, (b",", b":", b"[", b"{"))) > _MAX_VALUES:
        return origin.drop("malformed", part.n_bytes, part.start, detail=f"more than {_MAX_VALUES} JSON values")
    text = decode_text(part.data.removeprefix(b"\xef\xbb\xbf") if part.start == 0 else part.data, config.encoding)
    if text is None:
        return origin.drop(NOT_UTF8, part.n_bytes, part.start)
    try:
        return decode_json(text)
    except ValueError as error:
        return origin.drop("malformed", part.n_bytes, part.start, detail=str(error)[:200])


def _text_document(part: StreamPart, config: InputConfig, origin: Origin) -> Document | Dropped:
    assert part.data is not None
    data = part.data.removeprefix(b"\xef\xbb\xbf") if part.start == 0 else part.data
    text = decode_text(data, config.encoding)
    if text is None:
        return origin.drop(NOT_UTF8, part.n_bytes, part.start)
    return Document(content_id("text", text.encode()), text)


def _page(part: StreamPart, config: InputConfig, origin: Origin) -> Page:
    assert part.data is not None
    page_id = f"page{origin.position_id(part.start).removeprefix('file')}"
    return Page(page_id, part.data, None, is_html=True, metadata={})
