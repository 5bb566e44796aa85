"""Define the results of reading an input file: pages, documents, and bad records with their position in the file."""

import codecs
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_prep.documents.shards import Document, content_id, whole_text
from gpt.errors import import_extra

_MAX_ID = 1024  # characters
_ASCII = bytes(range(128))
_WIDE = {"utf-16": 2, "utf-16-le": 2, "utf-16-be": 2, "utf-32": 4, "utf-32-le": 4, "utf-32-be": 4}
# Byte-order marks, the longer ones first: that of UTF-16-LE is the beginning of that of UTF-32-LE.
_MARKS = {
    **dict.fromkeys((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "utf-32"),
    **dict.fromkeys((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "utf-16"),
}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class Page:
    """A web page as fetched: its bytes, and the character set that the server named, or None."""

    id: str
    content: bytes
    charset: str | None
    is_html: bool
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Unread:
    """A part of a file that cannot be read: bytes of the file, and records in it if the file tells their number."""

    n_bytes: int
    n_records: int | None = None


@dataclass(frozen=True)
class Dropped:
    """A record that gives no document, and the reason. `id`: its own, else its position (`Origin.position_id`).

    `unread`: it stands for all records of a part of the file that cannot be read.
    """

    reason: str
    n_bytes: int
    id: str = ""
    detail: str = ""
    unread: Unread | None = None


class Origin:
    """Names positions in one input file by the file's content, so that the names survive moving and renaming it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _digest(self) -> str:
        """The start of the file's digest in the manifest; computed once, and only if there is a bad record."""
        digest = import_extra("xxhash", extra="data").xxh3_128()
        with open(self._path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return str(digest.hexdigest())[:16]

    def position_id(self, offset: int | str) -> str:
        """`file:DIGEST@OFFSET`, the id of a record that has none."""
        return f"file:{self._digest}@{offset}"

    def drop(
        self,
        reason: str,
        n_bytes: int,
        offset: int | str,
        *,
        id: str = "",
        detail: str = "",
        unread: Unread | None = None,
    ) -> Dropped:
        """Describe a record dropped at `offset`: bytes of the file or of its unpacked content, as the reader counts."""
        where = f"at byte {offset}" if id else ""
        about = ": ".join(part for part in (where, detail) if part)
        return Dropped(reason, n_bytes, id or self.position_id(offset), about, unread)


def usable_id(value: object) -> str:
    """Return a source's own id as text, or "" if a line cannot hold it: over 1,024 characters, or control characters.

    Ids are only compared, hashed and shown; no id ever becomes a path.
    """
    if not isinstance(value, str | int) or isinstance(value, bool):
        return ""
    text = whole_text(str(value))
    return "" if len(text) > _MAX_ID or (not text.isprintable() and _CONTROL.search(text)) else text


def from_fields(values: object, *, text_field: str, id_field: str) -> Document | None:
    """Make a document from the fields of a JSON object or of a table's row; None if it has no text."""
    if not isinstance(values, dict) or not isinstance(values.get(text_field), str):
        return None
    text = whole_text(values[text_field])
    metadata = {key: shown(values[key]) for key in ("url", "date") if isinstance(values.get(key), str)}
    return Document(usable_id(values.get(id_field)) or content_id("text", text.encode()), text, metadata)


def shown(text: str, limit: int = 2048) -> str:
    """Make a header's text safe for the metadata: no control characters, at most `limit` characters."""
    text = whole_text(text)[:limit]
    return text if text.isprintable() else _CONTROL.sub(" ", text)


def decode_utf8(data: bytes) -> str | None:
    """Decode text that should be UTF-8, with U+FFFD for a few broken characters; None if it is something else.

    A few means at most one in fifty of the bytes beyond ASCII, so that no other encoding is taken for UTF-8.
    """
    text = data.decode("utf-8", "replace")
    n_broken = 0 if "\ufffd" not in text else text.count("\ufffd") - data.count(b"\xef\xbf\xbd")
    if n_broken and n_broken * 50 > len(data.translate(None, _ASCII)):
        return None
    return text


def decode_text(data: bytes, encoding: str) -> str | None:
    """Decode text that is UTF-8, or else in `encoding`; None if it is neither, or `encoding` is empty."""
    text = decode_utf8(data)
    if text is None and encoding and not is_wide(encoding):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            return None
    return text


def usable_encoding(name: str) -> bool:
    """Return whether Python knows the encoding, and it keeps ASCII bytes as they are or is UTF-16 or UTF-32."""
    ascii_text = bytes(range(32, 127))
    try:
        found = codecs.lookup(name)
        is_seven_bit = found.name.startswith(("iso2022", "hz", "utf-7", "punycode", "idna"))
        is_text = getattr(found, "_is_text_encoding", True) and "escape" not in found.name
        if is_wide(name):
            return True
        return is_text and not is_seven_bit and ascii_text.decode(name) == ascii_text.decode("ascii")
    except (LookupError, UnicodeError):
        return False


def is_wide(encoding: str) -> bool:
    """Return whether the encoding is UTF-16 or UTF-32, where no byte is a letter or a line break."""
    return codecs.lookup(encoding).name in _WIDE


def wide_encoding(start: bytes, encoding: str) -> str:
    """Return UTF-16 or UTF-32 if a file that starts with these bytes is in it, else "".

    It is if it has the byte-order mark, or if `encoding` is such and the bytes are not UTF-8 without NUL.
    """
    for mark, name in _MARKS.items():
        if start.startswith(mark):
            return name
    if not encoding or not is_wide(encoding):
        return ""
    return encoding if b"\0" in start or decode_utf8(start[:-4]) is None else ""


def text_fields(records: Iterable[object]) -> dict[str, int]:
    """Return the fields that hold text in records, with the sum of their characters, the longest first."""
    sums: Counter[str] = Counter()
    for record in records:
        if isinstance(record, dict):
            sums.update({str(key): len(value) for key, value in record.items() if isinstance(value, str)})
    return dict(sums.most_common())


def no_text(values: object, text_field: str) -> str:
    """Say that a record has no text, and which fields it has."""
    if not isinstance(values, dict):
        return f"no text in '{text_field}': no JSON object"
    names = ", ".join(shown(str(key), 60) for key in list(values)[:20])
    return f"no text in '{text_field}' (it has: {names or 'nothing'})"
